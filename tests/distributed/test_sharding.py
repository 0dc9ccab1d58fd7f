"""A network in shards trains as a whole one, a share on each rank; its states go on under any trainer."""

from copy import deepcopy
from functools import partial
from itertools import chain

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from ldm.callbacks.ema import EMA
from ldm.callbacks.gradients import Gradients
from ldm.data.datamodule import PictureData
from ldm.data.latents import LatentData
from ldm.distributed.ranks import local, whole, whole_state, world_size
from ldm.distributed.sharding import Sharded, shard
from ldm.planning.checks import check_start
from ldm.stages.autoencoder import AutoencoderStage
from ldm.stages.muon import Muon
from ldm.stages.optim import parameter_groups
from ldm.stages.terms import LatentAlignment

BATCH = 6  # of all ranks together
STEPS = 4


def batch() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, context = (
        torch.randn(BATCH, 4, 4, 4, generator=generator),
        torch.randn(BATCH, 6, 16, generator=generator),
    )
    return [x, 1000 * torch.rand(BATCH, generator=generator), context, x.flip(0)]


def num_bytes(tensors) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


def test_weights_gradients_moments_and_average_are_shared_out_and_equal_the_whole(
    ranks, build_network, specs
):
    def act(rank):
        """Three steps of AdamW and an average; the state of all, and bytes held here by each."""
        count = world_size()
        net = build_network(specs["denoiser"], 2)
        average = deepcopy(net).requires_grad_(False)
        if count > 1:
            mesh = init_device_mesh("cpu", (count,))
            shard(net, mesh), shard(average, mesh)
        optimizer = torch.optim.AdamW(parameter_groups(net), lr=1e-3, eps=1e-3, fused=True)
        own = [tensor[rank::count] for tensor in batch()]
        for _ in range(3):
            mse_loss(net(*own[:3]), own[3]).backward()
            gradients = [parameter.grad for parameter in net.parameters()]
            norm = whole(torch.nn.utils.get_total_norm(gradients))
            torch.nn.utils.clip_grads_with_norm_(net.parameters(), 0.1, norm)
            held = num_bytes(gradients)
            optimizer.step()
            optimizer.zero_grad()
            ours, theirs = ([local(p) for p in each.parameters()] for each in (average, net))
            torch._foreach_lerp_(ours, [each.detach() for each in theirs], 0.5)
        moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        held = [num_bytes(net.parameters()), held, num_bytes(moments), num_bytes(average.parameters())]
        states = [whole_state(net), whole_state(average), {"norm": norm}]
        return [*states, held]

    alone, together = act(0), ranks(act)
    for found in together:
        for ours, theirs in zip(found[:3], alone[:3], strict=True):
            assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        for share, everything in zip(found[3], alone[3], strict=True):
            assert share < 0.6 * everything


@pytest.fixture
def autoencoder_stage(autoencoder, adamw) -> AutoencoderStage:
    return AutoencoderStage(net=autoencoder, optimizer=adamw, decay=lambda step: 1.0, kl_weight=0.0)


class SaveAt(Callback):
    """A training state once a step is done, by all ranks together."""

    def __init__(self, step: int, path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def train(make_trainer, small_stage, diffusion_stage, emoji):
    """`train(strategy, ...)`: weights and average at the end, whole, and how many weights were shards."""

    def run(strategy, *, state=None, save=None, terms=None):
        count = world_size()
        stage = small_stage(6 if state else 5, eps=1e-3)
        if terms:
            stage = diffusion_stage(net=stage.net, optimizer=stage.optimizer, decay=stage.decay, terms=terms)
        pictures = PictureData(root=str(emoji), size=16, batch_size=BATCH // count, seed=3)
        data = LatentData(pictures=pictures, codec=stage.codec)
        callbacks = [EMA(decay=0.5), Gradients(clip=0.1), *([SaveAt(*save)] if save else [])]
        several = {"devices": count, "strategy": strategy()} if strategy else {}
        trainer = make_trainer(STEPS, *callbacks, precision="32-true", **several)
        trainer.fit(stage, datamodule=data, ckpt_path=state)
        dealt = sum(isinstance(parameter, DTensor) for parameter in stage.parameters())
        return [whole_state(stage), whole_state(stage.averaged), dealt]

    return run


def assert_same(found, expected) -> None:
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_stage_trains_in_shards_and_its_states_go_on_under_any_trainer(train, ranks, tmp_path):
    """A whole state on one rank and on two whole networks, a state in shards on three instead of two ranks.

    That it goes on in shards on two ranks is in test_saved_shards.py.
    """
    path, folder = tmp_path / "state.ckpt", tmp_path / "shards.ckpt"
    whole_run = train(None)
    strategy = partial(Sharded, save_shards=True)

    def act(rank):
        return [
            train(Sharded, save=(2, path)),
            train(strategy, save=(2, folder)),
            train(DDPStrategy, state=path),
        ]

    together = ranks(act)
    assert all(found[2] > 10 for found, *_ in together)
    assert path.is_file()
    assert {str(value.device) for value in torch.load(path)["state_dict"].values()} == {"cpu"}
    assert len(list(folder.glob("*.distcp"))) == 2
    resumed = [train(None, state=path), *ranks(lambda rank: train(strategy, state=folder), 3)]
    for found in [*chain.from_iterable(together), *resumed]:
        assert_same(found, whole_run)


def test_the_projector_of_a_term_trains_in_shards(train, ranks):
    terms = {"sra": partial(LatentAlignment, inner=8)}
    whole_run, together = train(None, terms=terms), ranks(lambda rank: train(Sharded, terms=terms))
    assert "terms.sra.projector.0.weight" in whole_run[0]
    for found in together:
        assert_same(found, whole_run)


def test_what_wants_whole_weights_is_refused_by_name(diffusion_stage, autoencoder_stage):
    config = {
        "trainer": {"strategy": {"_target_": "ldm.distributed.sharding.Sharded"}},
        "compile": False,
        "callbacks": {},
    }
    check_start(diffusion_stage(), config)
    with pytest.raises(ValueError, match="AutoencoderStage trains another network: take trainer=ddp"):
        check_start(autoencoder_stage, config)
    with pytest.raises(ValueError, match="compile=true with trainer=fsdp is not supported"):
        check_start(diffusion_stage(), config | {"compile": True})
    metrics = {"_target_": "ldm.callbacks.generation_metrics.GenerationMetrics"}
    with pytest.raises(ValueError, match="GenerationMetrics generates more batches on one rank"):
        check_start(diffusion_stage(), config | {"callbacks": {"generation": metrics}})


def test_muon_refuses_shards(ranks, build_network, specs):
    def act(rank):
        net = shard(build_network(specs["denoiser"], 2), init_device_mesh("cpu", (2,)))
        try:
            Muon(net.parameters(), lr=1e-3)
        except ValueError as error:
            return str(error)

    assert all("whole matrices" in message for message in ranks(act))
