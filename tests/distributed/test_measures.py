"""Measures of drawings in fits of two ranks: nobody waits for a rank that has less to do, or that fails."""

import warnings

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.strategies import DDPStrategy

from ldm.callbacks.generation_metrics import GenerationMetrics
from ldm.data.datamodule import PictureData
from ldm.data.latents import LatentData
from ldm.distributed.ranks import rank, world_size
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.retrieval import PictureRecall

BATCH = 4  # of all ranks together


class Pixels:
    """Features that are the pixels themselves; with an error, the last rank raises it."""

    identity = FeatureIdentity(name="pixels", sha256="0" * 64, size=16, resize="none")
    dims = {"pixels": 3 * 16 * 16}  # noqa: RUF012

    def __init__(self, error=None):
        self.error = error

    def __call__(self, images):
        if self.error is not None and rank() == world_size() - 1:
            raise self.error("on one rank only")
        return {"pixels": images.flatten(1).float()}


class Logged(Callback):
    """What can be monitored after each validation."""

    def __init__(self):
        self.found = []

    def on_validation_end(self, trainer, pl_module):
        self.found.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.fixture
def fit(make_trainer, diffusion_stage, emoji):
    """`fit(*callbacks, captions=..., error=...)`: steps, numbers at each validation, weights and warnings."""

    def run(*callbacks, captions=6, error=None, steps=2):
        count, logged = world_size(), Logged()
        measures = GenerationMetrics(
            extractors={"pixels": Pixels(error)},
            metrics={"nearest": PictureRecall(features="pixels", ks=(1, 5))},
            captions=captions,
            batch_size=2,
        )
        several = {"devices": count, "strategy": DDPStrategy()} if count > 1 else {}
        options = {"limit_val_batches": 1.0, "val_check_interval": 1, "precision": "32-true"}
        trainer = make_trainer(steps, measures, *callbacks, logged, **options, **several)
        stage = diffusion_stage()
        pictures = PictureData(root=str(emoji), size=16, batch_size=BATCH // count, seed=3)
        data = LatentData(pictures=pictures, codec=stage.codec)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.fit(stage, datamodule=data)
        told = [str(each.message) for each in said if "not measured" in str(each.message)]
        weights = [parameter.detach().clone() for parameter in stage.parameters()]
        return [trainer.global_step, logged.found, weights, told, measures.batch_size]

    return run


def assert_together(found) -> None:
    """Every rank has the same weights."""
    for weights in (each[2] for each in found[1:]):
        assert all(torch.equal(a, b) for a, b in zip(found[0][2], weights, strict=True))


@pytest.mark.parametrize("captions", [6, 2])
def test_uneven_and_empty_shares_give_the_numbers_of_one_rank(fit, ranks, captions):
    """Drawn two at a time: of 6 one rank draws two thirds, of 2 one rank draws none."""
    alone, together = fit(captions=captions, steps=1), ranks(lambda _: fit(captions=captions, steps=1))
    for step, numbers, _, told, _ in together:
        assert (step, told) == (1, [])
        for name in ("val/r1_pixels", "val/r5_pixels"):
            assert numbers[0][name] == pytest.approx(alone[1][0][name], abs=1e-6)
        # every rank validates on all pictures, in batches of another size than one process does
        assert numbers[0]["val/loss_fixed"] == pytest.approx(alone[1][0]["val/loss_fixed"], rel=1e-5)
    assert_together(together)


@pytest.mark.parametrize(("error", "halved"), [(ValueError, 2), (torch.OutOfMemoryError, 1)])
def test_a_failure_of_one_rank_leaves_the_training_of_both_alone(fit, ranks, error, halved):
    together = ranks(lambda _: fit(error=error))
    for step, numbers, _, _, _ in together:
        assert step == 2
        assert len(numbers) == 2
        assert all("val/loss" in each and "val/r1_pixels" not in each for each in numbers)
    first, second = together
    assert len(first[3]) == 2
    assert f"process 1 failed: {error.__name__}: on one rank only" in first[3][0]
    assert second[4] <= halved  # the rank that has no room draws fewer at once
    assert_together(together)


class Own(Callback):
    """A number that is not the same on every rank."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/own", float(trainer.global_rank), sync_dist=False)


def test_a_stop_that_one_rank_decides_on_stops_both_at_the_same_step(fit, ranks):
    def act(_):
        stopping = EarlyStopping(monitor="val/own", mode="max", stopping_threshold=0.5)
        return fit(Own(), stopping, steps=4)

    together = ranks(act)
    assert [each[0] for each in together] == [1, 1]
    assert_together(together)
