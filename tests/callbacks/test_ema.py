"""Facts about the average of the network."""

import pytest
import torch
from pytorch_lightning import Callback

from ldm.callbacks.ema import EMA


class Watcher(Callback):
    """The network's and the average's first kernel after each batch."""

    def __init__(self) -> None:
        self.raw, self.averaged = [], []

    def on_train_start(self, trainer, pl_module) -> None:
        self.start = pl_module.net.patches_in.weight.detach().clone()
        assert torch.equal(pl_module.averaged.patches_in.weight, self.start)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.raw.append(pl_module.net.patches_in.weight.detach().clone())
        self.averaged.append(pl_module.averaged.patches_in.weight.detach().clone())


@pytest.fixture
def watch(diffusion_stage, latents, make_trainer, build_network, specs):
    def run(decay: float, steps: int, **options):
        stage, watcher = diffusion_stage(), Watcher()
        stage.net = build_network(specs["denoiser"], 2)
        trainer = make_trainer(steps, EMA(decay=decay), watcher, **options)
        trainer.fit(stage, datamodule=latents)
        return stage, watcher

    return run


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.999])
def test_the_average_follows_its_closed_form(watch, decay):
    _, watcher = watch(decay, 6)
    expected = watcher.start
    for k, (raw, averaged) in enumerate(zip(watcher.raw, watcher.averaged, strict=True)):
        factor = min(
            decay, (1 + k) / (10 + k)
        )  # the warm-up: the first average is nine tenths of the first step
        expected = factor * expected + (1 - factor) * raw
        torch.testing.assert_close(averaged, expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(averaged, raw) == (decay == 0)


def test_an_accumulating_batch_does_not_count(watch):
    _, watcher = watch(0.9, 2, accumulate_grad_batches=2)
    assert torch.equal(watcher.averaged[0], watcher.start)
    assert not torch.equal(watcher.averaged[1], watcher.start)
    assert torch.equal(watcher.averaged[2], watcher.averaged[1])


def test_the_average_is_frozen_and_no_part_of_the_stage(watch):
    stage, _ = watch(0.9, 1)
    assert not any(p.requires_grad for p in stage.averaged.parameters())
    assert not stage.averaged.training
    assert all(name.startswith("net.") for name in stage.state_dict())
    stage.train()
    assert not stage.averaged.training


def test_validation_leaves_it_in_evaluation_mode(watch):
    stage, _ = watch(0.9, 2, val_check_interval=1, limit_val_batches=1)
    assert not stage.averaged.training


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        EMA(decay=decay)
