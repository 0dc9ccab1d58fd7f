"""Measures of drawings, taken while a network trains."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from ldm.callbacks.generation_metrics import GenerationMetrics
from ldm.callbacks.saving import SaveStates
from ldm.config import CONF
from ldm.construct import construct
from ldm.evaluation.published import reference_lines
from ldm.io.reading import hash_file
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.frechet import FrechetDistance, Moments, frechet_distance
from ldm.metrics.networks import inception_2015
from ldm.metrics.retrieval import PictureRecall

DISTANCE = "val/fd_colours_few"


class Pixels(torch.nn.Module):
    """Features that are the pixels themselves; from the `fails_at`th batch on it fails."""

    identity = FeatureIdentity(name="pixels", sha256="0" * 64, size=16, resize="none")
    dims = {"pixels": 3 * 16 * 16}  # noqa: RUF012

    def __init__(self, *, fails_at=math.inf, error=RuntimeError):
        super().__init__()
        self.calls, self.fails_at, self.error = 0, fails_at, error

    def forward(self, images):
        self.calls += 1
        if self.calls >= self.fails_at:
            raise self.error("broken")
        return {"pixels": images.flatten(1).float()}


class Logged(Callback):
    """What can be monitored after each validation."""

    def __init__(self):
        self.found = []

    def on_validation_end(self, trainer, pl_module):
        self.found.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def measures(extractor=None, **options):
    settings = {"captions": 6, "batch_size": 4}
    settings["metrics"] = {"nearest": PictureRecall(features="pixels", ks=(1, 5))}
    return GenerationMetrics(extractors={"net": extractor or Pixels()}, **settings | options)


@pytest.fixture
def fit(make_trainer, diffusion_stage, latents):
    def run(steps, *callbacks, **options):
        trainer = make_trainer(steps, *callbacks, limit_val_batches=1.0, val_check_interval=1, **options)
        trainer.fit(diffusion_stage(), datamodule=latents)
        return trainer

    return run


def test_recall_is_logged_at_each_validation_and_is_the_same_for_the_same_weights(
    diffusion_stage, latents, make_trainer
):
    trainer = make_trainer(1, measures(), limit_val_batches=1.0)
    first = trainer.validate(diffusion_stage(), datamodule=latents, verbose=False)[0]
    again = trainer.validate(diffusion_stage(), datamodule=latents, verbose=False)[0]
    assert {"val/r1_pixels", "val/r5_pixels"} <= first.keys()
    assert 0 <= first["val/r1_pixels"] <= first["val/r5_pixels"] <= 1
    assert first == again


def test_the_logged_distance_is_that_of_the_drawings_to_all_real_pictures(
    diffusion_stage, latents, make_trainer
):
    stage, colours = diffusion_stage(), Colours()
    metrics = {"distance": FrechetDistance(features="colours", dims=3)}
    callback = measures(colours, few=["distance"], metrics=metrics)
    logged = make_trainer(1, callback, limit_val_batches=1.0).validate(
        stage, datamodule=latents, verbose=False
    )
    captions = callback.reference.captions(callback.captions, seed=0)
    drawn = stage.generator()([caption.text for caption in captions], [*range(6)])
    splits = (latents.pictures.train, latents.pictures.val)
    real = torch.stack([split.image(number) for split in splits for number in range(len(split))])
    sides = [Moments.of(colours(images)["colours"]).gaussian() for images in (drawn, real)]
    assert logged[0][DISTANCE] == pytest.approx(frechet_distance(*sides).item(), rel=1e-4)


def test_numbers_do_not_depend_on_how_many_are_drawn_at_once(diffusion_stage, latents, make_trainer):
    found = [
        make_trainer(1, measures(batch_size=size), limit_val_batches=1.0).validate(
            diffusion_stage(), datamodule=latents, verbose=False
        )[0]
        for size in (1, 6)
    ]
    assert found[0] == pytest.approx(found[1])


def test_early_stopping_can_monitor_it(fit):
    stopping = EarlyStopping(monitor="val/r1_pixels", mode="max", stopping_threshold=-1.0, strict=False)
    assert fit(4, measures(), stopping).global_step == 1


def test_early_stopping_and_checkpoints_monitor_a_distance(fit, tmp_path):
    measured = GenerationMetrics(
        extractors={"colours": Colours()},
        metrics={"distance": FrechetDistance(features="colours", dims=3)},
        captions=6,
        few=["distance"],
    )
    stopping = EarlyStopping(monitor=DISTANCE, mode="min", min_delta=1e9, patience=2, strict=False)
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor=DISTANCE, mode="min")
    logged = Logged()
    trainer = fit(6, measured, stopping, best, logged, enable_checkpointing=True)
    assert trainer.global_step == 3  # the first is the best, two are no better
    values = [found[DISTANCE] for found in logged.found]
    assert best.best_model_score == pytest.approx(min(values))
    saved = torch.load(best.best_model_path, weights_only=True)
    assert saved["global_step"] == 1 + values.index(min(values))


def test_measurements_are_taken_every_so_many_steps(fit):
    extractor = Pixels()
    fit(4, measures(extractor, every=3))
    assert extractor.calls == 2 + 2 * 2  # both real splits once, then at steps 1 and 4 two batches each


def test_a_resumed_training_measures_where_it_would_have_measured(
    diffusion_stage, latents, make_trainer, tmp_path
):
    def looks(steps, **options):
        extractor, saving = Pixels(), SaveStates(folder=str(tmp_path), every=2)
        often = {"limit_val_batches": 1.0, "val_check_interval": 1}
        trainer = make_trainer(steps, measures(extractor, every=3), saving, **often)
        trainer.fit(diffusion_stage(), datamodule=latents, **options)
        return extractor.calls

    looks(2)  # measured at step 1
    state = tmp_path / "step=00000002" / "state.ckpt"
    assert looks(3, ckpt_path=state) == 0
    assert looks(4, ckpt_path=state) == 2 + 2  # both real splits, two batches at step 4


def test_the_configs_fid_has_the_lines_of_the_literature_and_refuses_few_pictures(tmp_path):
    node = OmegaConf.to_container(OmegaConf.load(CONF / "callbacks" / "diffusion_fid.yaml"))["generation"]
    weights = tmp_path / "inception.pth"
    with torch.device("meta"):
        state = inception_2015().state_dict()
    torch.save({name: torch.zeros_like(tensor, device="cpu") for name, tensor in state.items()}, weights)
    node["extractors"]["inception"] |= {"weights": str(weights), "sha256": hash_file(weights)}
    callback = construct(node | {"cache": None}, allowed=["ldm."])
    names = {metric.needs[0] for metric in callback.metrics.values()}
    assert names == {*callback.observers.names}
    assert reference_lines(callback.published, "val/fid")["DALL-E"] == 27.5
    with pytest.raises(ValueError, match=r"has 64 pictures for 'fid'"):
        construct(node | {"cache": None, "captions": 64, "extractors": {}}, allowed=["ldm."])


def test_a_distance_of_few_pictures_is_refused_or_asked_for_and_labelled(fit):
    metrics = {"distance": FrechetDistance(features="colours", dims=3)}
    options = {"extractors": {"colours": Colours()}, "metrics": metrics, "captions": 6}
    with pytest.raises(ValueError, match="has 6 pictures for 'distance', which wants 2048: take more, or"):
        GenerationMetrics(**options)
    logged = Logged()
    with pytest.warns(UserWarning, match="pictures for 'distance', which wants 2048"):  # few real ones
        fit(1, GenerationMetrics(**options, samples=342), logged)
    assert not any("fd_colours" in name for name in logged.found[0])
    fit(1, GenerationMetrics(**options, few=["distance"]), logged)
    assert {name for name in logged.found[-1] if "fd_colours" in name} == {DISTANCE}


@pytest.mark.parametrize("error", [RuntimeError, ValueError, torch.OutOfMemoryError])
def test_a_failure_warns_and_the_training_goes_on(fit, error):
    callback, logged = measures(Pixels(fails_at=3, error=error)), Logged()
    with pytest.warns(UserWarning, match=rf"not measured at step 1 \({error.__name__}: broken\)"):
        trainer = fit(2, callback, logged)
    assert trainer.global_step == 2
    assert not any("val/r1_pixels" in found for found in logged.found)
    assert callback.batch_size == (1 if error is torch.OutOfMemoryError else 4)  # halved twice


def test_numbers_of_the_literature_are_logged_beside_ours(fit, tmp_path):
    path = tmp_path / "published.yaml"
    row = {
        "system": "theirs",
        "values": {"fid": 12.5},
        "dataset": "MS-COCO 2014",
        "split": "val",
        "images": 30000,
        "zero_shot": True,
        "reranking": None,
        "guidance": None,
        "resolution": 256,
        "resize": None,
        "paper": "a paper",
        "printed_in": "the paper",
        "table": "1",
        "page": 1,
    }
    path.write_text(f"[{row}]".replace("None", "null").replace("True", "true"))
    callback, logged = measures(published=str(path)), Logged()
    callback.metrics = {"named": Named()}
    fit(1, callback, logged)
    assert logged.found[0]["literature/fid/theirs"] == 12.5
    assert "val/fid" in logged.found[0]


def test_the_numbers_that_come_with_the_code_are_the_lines_unless_others_are_named():
    lines = reference_lines(measures().published, "val/fid")
    assert lines["DALL-E"] == 27.5


class Colours(Pixels):
    """Features that are a picture's mean colour."""

    identity = FeatureIdentity(name="colours", sha256="0" * 64, size=16, resize="none")
    dims = {"colours": 3}  # noqa: RUF012

    def forward(self, images):
        return {"colours": images.float().mean((2, 3))}


class Named(PictureRecall):
    """A measure whose result has the literature's name."""

    def __init__(self):
        super().__init__(features="pixels", ks=(1,))

    def compute(self):
        return {"fid": super().compute()["r1_pixels"]}
