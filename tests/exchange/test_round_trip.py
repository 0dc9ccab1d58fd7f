"""Facts about bundles that are exported and imported again: nothing that they say is lost."""

import json
import resource
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ldm.checkpoints.bundle import SHIPPED, Bundle
from ldm.exchange.exporting import open_export, write_diffusers, write_single_file
from ldm.generators.diffusion_bundle import open_latent_diffusion
from tests.exchange.both import PROMPTS, SEEDS, export
from tests.exchange.conftest import SCHEDULE

NOT_COMPARED = ("parts", "origin", "linear_projection")


def says(bundle: Bundle) -> dict:
    """All but the origin and the hashes of files, which hold the same numbers in another precision."""
    specs = {name: part["spec"] for name, part in bundle.config["parts"].items()}
    return {key: value for key, value in bundle.config.items() if key not in NOT_COMPARED} | {"specs": specs}


def assert_same_bundle(path, expected) -> None:
    found, wanted = Bundle.open(path), Bundle.open(expected)
    assert says(found) == says(wanted)
    for name in wanted.names:
        ours, theirs = found.part(name).state, wanted.part(name).state
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    pictures = [open_latent_diffusion(each, steps=4)(PROMPTS, SEEDS) for each in (found, wanted)]
    assert torch.equal(*pictures)


@pytest.fixture(scope="module")
def mine(imported, tmp_path_factory):
    """A bundle with settings that no format of others has: guidance, times, channels, provenance."""
    bundle = shutil.copytree(imported, tmp_path_factory.mktemp("mine") / "bundle")
    config = OmegaConf.load(bundle / "config.yaml")
    config.guidance = {"_target_": "ldm.diffusion.guidance.cfg_rescale", "_partial_": True, "scale": 2.0}
    config.process.times = {
        "_target_": "ldm.diffusion.process.logit_normal_timesteps",
        "_partial_": True,
        "mean": 0.3,
        "std": 1.2,
        "shift": 2.0,
    }
    config.process.weight = {"_target_": "ldm.diffusion.predictions.min_snr", "_partial_": True, "gamma": 5.0}
    config.latents = {"shift": [0.1, 0.2, 0.3, 0.4], "scale": [0.3, 0.7, 1.1, 0.9]}
    config.sampler.steps = 7
    config.origin = {"experiment": "mine", "run": "20260101"}
    config.codec_origin = {"autoencoder": {"experiment": "kl"}}
    config.parts.backbone.spec.checkpointing = False
    OmegaConf.save(config, bundle / "config.yaml")
    return bundle


def test_the_shipped_bundle_comes_back_from_diffusers(bundle_of, tmp_path):
    back = bundle_of(export(SHIPPED, tmp_path / "out"))
    assert_same_bundle(back, SHIPPED)
    assert (
        Bundle.open(back).entry("guidance")["scale"] == Bundle.open(SHIPPED).entry("guidance")["scale"] != 7.5
    )


def test_so_does_a_bundle_of_all_that_others_lack(mine, bundle_of, tmp_path):
    back = bundle_of(export(mine, tmp_path / "out"))
    assert_same_bundle(back, mine)
    assert Bundle.open(back).entry("origin")["before"] == {"experiment": "mine", "run": "20260101"}


def test_so_it_does_from_a_single_file(mine, bundle_of, tmp_path):
    out = write_single_file(
        open_export(Bundle.open(mine), {}), tmp_path / "one.safetensors", dtype=torch.float32
    )
    assert_same_bundle(bundle_of(out), mine)


def test_steps_that_were_written_instead_of_the_bundles_come_back(mine, bundle_of, tmp_path):
    assert Bundle.open(bundle_of(export(mine, tmp_path / "out", steps=3))).entry("sampler")["steps"] == 3


@pytest.mark.parametrize("form", ["folder", "one.safetensors"])
def test_a_disk_that_is_full_gets_a_sentence_and_leaves_nothing(mine, tmp_path, form):
    opened = open_export(Bundle.open(mine), {})
    write = write_diffusers if form == "folder" else write_single_file
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match=f"{form} can't be written .*: .* bytes are free on its disk"):
            write(opened, tmp_path / form, dtype=torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def edit(path, **change) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("file", "change", "entry", "value"),
    [
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "process.schedule.beta_end", 0.02),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "leading"}, "sampler.steps", 50),
        ("vae/config.json", {"scaling_factor": 0.5}, "latents.scale", [0.5] * 4),
    ],
)
def test_a_file_that_was_edited_counts_and_the_rest_stays(mine, tiny, tmp_path, file, change, entry, value):
    out = export(mine, tmp_path / "out")
    edit(out / file, **change)
    found = tiny(out)
    assert OmegaConf.select(OmegaConf.create(found.settings), entry) == value
    weights = load_file(out / "vae" / "diffusion_pytorch_model.safetensors")["quant_conv.bias"]
    as_written = torch.equal(found.parts["autoencoder"].state["to_moments.bias"], weights)
    assert as_written == (entry == "latents.scale")  # whose shifts and scales are in them
    assert found.settings["guidance"] == Bundle.open(mine).entry("guidance")
    assert found.notes[0].split(": ")[0] in ("process", "sampler", "autoencoder, latents")
    assert "changed since the export" in found.notes[0]


def test_weights_that_were_trained_on_elsewhere_count(mine, tiny, tmp_path):
    out = export(mine, tmp_path / "out")
    path = out / "vae" / "diffusion_pytorch_model.safetensors"
    moved = {name: tensor + 0.5 for name, tensor in load_file(path).items()}
    save_file(moved, path)
    found = tiny(out)
    assert torch.equal(found.parts["autoencoder"].state["to_moments.bias"], moved["quant_conv.bias"])
    assert found.settings["latents"] == {"shift": [0.0] * 4, "scale": [1.0] * 4}
    assert found.notes == [
        "autoencoder, latents: changed since the export, and read from the files as they are now"
    ]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"settings": {}, "parts": []},
        {
            "settings": {"guidance": {"own": {"_target_": "os.system", "command": "x"}, "exported": None}},
            "parts": {},
        },
        {"settings": {"process": 3}, "parts": {}},
        {"settings": {}, "parts": {"image_encoder": {"spec": {"_target_": "os.getcwd"}}}},
    ],
)
def test_a_forged_record_is_refused(mine, tiny, tmp_path, record):
    out = export(mine, tmp_path / "out")
    if "guidance" in record.get("settings", {}):
        record["settings"]["guidance"]["exported"] = tiny_guidance(out, tiny)
    (out / "ldm.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"ldm\.json is damaged .*: fetch it again, or remove it"):
        tiny(out)


def tiny_guidance(out, tiny) -> dict:
    """The guidance that the folder is read as without its record."""
    record = (out / "ldm.json").read_text()
    (out / "ldm.json").unlink()
    guidance = tiny(out).settings["guidance"]
    (out / "ldm.json").write_text(record)
    return guidance


def test_a_folder_without_the_record_is_read_as_diffusers_has_it(mine, tiny, tmp_path):
    out = export(mine, tmp_path / "out")
    for name in ("ldm.json", "ldm.safetensors"):
        (out / name).unlink()
    found = tiny(out)
    assert found.settings["guidance"]["scale"] == 7.5
    assert found.settings["process"]["schedule"]["beta_end"] == SCHEDULE["beta_end"]
