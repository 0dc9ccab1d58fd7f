"""Facts about early states as bundles, and about drawing away from them."""

import json
import shutil

import pytest
import torch
import yaml
from torch.testing import assert_close

from ldm.callbacks.ema import EMA, PowerAverages
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.checkpoints.power_average import Averages, Profile
from ldm.evaluation.bundle import bundle_of_length
from ldm.generators.denoiser_writer import bundle_of_state
from ldm.generators.diffusion_bundle import open_latent_diffusion, sampling_nodes

GUIDED = {"_target_": "ldm.diffusion.guidance.autoguidance", "_partial_": True, "scale": 2.0}


@pytest.fixture(scope="module")
def settings(bundle_path, specs):
    """The config of a run of the denoiser, as its folder holds it."""
    source = Bundle.open(bundle_path).config
    return {
        "name": "tiny",
        "backbone": specs["denoiser"],
        "codec": {"autoencoder": str(bundle_path), "text_encoder": str(bundle_path)},
        "data": {"size": source["size"]},
        **{name: source[name] for name in ("process", "sampler", "guidance")},
    }


@pytest.fixture
def run(diffusion_stage, latents, make_trainer, build_network, specs, settings, tmp_path):
    """`run(*callbacks)`: two steps of a training, saved after each; returns its folder and the stage."""

    def train(*callbacks):
        folder, stage = tmp_path / "run", diffusion_stage()
        stage.net = build_network(specs["denoiser"], 2)
        saving = SaveStates(folder=str(folder / "checkpoints"), every=1)
        make_trainer(2, *callbacks, saving).fit(stage, datamodule=latents)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        (folder / "run.json").write_text(json.dumps({"config_hash": "h", "commit": "c", "dirty": False}))
        return folder, stage

    return train


def test_the_last_states_bundle_is_the_one_that_the_run_leaves(run, settings, tmp_path):
    folder, stage = run(EMA(decay=0.9))
    left = Bundle.open(stage.write_bundle(tmp_path / "left", config=settings, data=None))
    made = Bundle.open(bundle_of_state(folder / "checkpoints" / "step=00000002", tmp_path / "made"))
    assert made.config["parts"] == left.config["parts"]
    told = {name: value for name, value in made.config.items() if name != "origin"}
    assert told == {name: value for name, value in left.config.items() if name != "origin"}
    assert made.entry("origin") == {
        "experiment": "tiny",
        "step": 2,
        "config_hash": "h",
        "commit": "c",
        "dirty": False,
    }


def test_an_early_state_gives_its_own_average_also_of_a_finished_run(run, settings, tmp_path):
    folder, stage = run(EMA(decay=0.9))
    early = folder / "checkpoints" / "step=00000001"
    first = Bundle.open(bundle_of_state(early, tmp_path / "first"))
    shutil.copytree(stage.write_bundle(tmp_path / "left", config=settings, data=None), folder / "bundle")
    again = Bundle.open(bundle_of_state(early / "state.ckpt", tmp_path / "again", dtype=torch.float32))
    held = torch.load(early / "state.ckpt", weights_only=True)["callbacks"]["EMA"]["net"]
    found = again.part("backbone").state
    assert all(torch.equal(found[name], tensor) for name, tensor in held.items())
    assert first.config["codec_origin"] == again.config["codec_origin"]
    assert first.config["parts"]["backbone"] != Bundle.open(folder).config["parts"]["backbone"]


def test_what_is_no_denoisers_state_is_refused(run, settings, tmp_path):
    folder, _ = run()
    state = folder / "checkpoints" / "step=00000002"
    with pytest.raises(ValueError, match="holds no averaged weights"):
        bundle_of_state(state, tmp_path / "out")
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        bundle_of_state(folder / "checkpoints" / "step=00000007", tmp_path / "out")
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "emoji_vae"}))
    with pytest.raises(ValueError, match="of emoji_vae, which trains no denoiser"):
        bundle_of_state(state, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def weak(write_tiny_bundle, tmp_path):
    """`weak(**entries)`: another bundle of the same parts, its config changed."""

    def write(**entries):
        path = write_tiny_bundle(tmp_path / "weak")
        config = yaml.safe_load((path / "config.yaml").read_text()) | entries
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        return path

    return write


def test_a_bundle_guided_by_itself_draws_what_it_draws_alone_at_any_scale(bundle_path, weak):
    bundle = Bundle.open(bundle_path)
    none = {"_target_": "ldm.diffusion.guidance.conditional", "_partial_": True}
    alone = open_latent_diffusion(bundle, guidance=none).latents(["red apple"], [0])
    path = weak()
    for scale in (0.0, 4.0):
        guided = open_latent_diffusion(bundle, guidance=GUIDED | {"weak": str(path)}, scale=scale)
        assert_close(guided.latents(["red apple"], [0]), alone, rtol=1e-4, atol=1e-4)


def test_how_a_weak_bundle_was_trained_does_not_matter_and_what_its_network_means_does(bundle_path, weak):
    bundle = Bundle.open(bundle_path)
    process = bundle.entry("process")
    shifted = process | {"times": process["times"] | {"shift": 2.0}}
    path = weak(process=shifted)
    assert open_latent_diffusion(bundle, guidance=GUIDED | {"weak": str(path)}).weak is not None


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"size": 32}, "it has another size of pictures"),
        ({"latents": {"shift": [0.0] * 4, "scale": [1.0] * 4}}, "it has another scale of latents"),
        ({"process": {"schedule": {"_target_": "ldm.diffusion.schedules.cosine"}}}, "it has another process"),
        ({"tokenizer": {"sha256": "0"}}, "it has another tokenizer"),
    ],
)
def test_a_weak_bundle_that_does_not_go_with_the_other_is_refused_by_name(bundle_path, weak, entries, named):
    path = weak(**entries)
    with pytest.raises(BundleError, match=named) as refused:
        open_latent_diffusion(Bundle.open(bundle_path), guidance=GUIDED | {"weak": str(path)})
    assert str(path) in str(refused.value)


def test_a_bundle_of_another_average_is_made_of_what_was_written(run, tmp_path):
    folder, _ = run(
        EMA(decay=0.9), PowerAverages(lengths=[0.05, 0.1], every=1, folder=str(tmp_path / "run" / "averages"))
    )
    state = folder / "checkpoints" / "step=00000002"
    made = Bundle.open(bundle_of_state(state, tmp_path / "made", length=0.1, dtype=torch.float32))
    kept = Averages(folder / "averages").average(Profile(2, 0.1))
    weights = made.part("backbone").state
    assert kept.keys() <= weights.keys()
    for name, value in kept.items():
        assert_close(weights[name], value)
    assert made.entry("origin")["ema_length"] == 0.1


def test_a_finished_runs_bundle_is_made_anew_with_another_average(run, settings, tmp_path):
    folder, stage = run(
        EMA(decay=0.9), PowerAverages(lengths=[0.05, 0.1], every=1, folder=str(tmp_path / "run" / "averages"))
    )
    stage.write_bundle(folder / "bundle", config=settings, data=None)
    made = Bundle.open(bundle_of_length(str(folder), tmp_path / "made", length=0.1))
    assert made.config["parts"]["autoencoder"] == Bundle.open(folder).config["parts"]["autoencoder"]
    assert (
        made.config["parts"]["backbone"]["sha256"]
        != Bundle.open(folder).config["parts"]["backbone"]["sha256"]
    )


def test_another_average_needs_the_run(bundle_path, tmp_path):
    with pytest.raises(ValueError, match=r"ema_length=0\.1 needs the run"):
        bundle_of_length(str(bundle_path), tmp_path / "made", length=0.1)


def test_a_weak_bundle_must_be_named(bundle_path):
    bundle = Bundle.open(bundle_path)
    nodes = sampling_nodes(bundle, {"guidance": GUIDED | {"weak": None}})
    with pytest.raises(ValueError, match=r"guidance\.weak is missing"):
        open_latent_diffusion(bundle, **nodes)
