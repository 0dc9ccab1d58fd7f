"""The export command as a user meets it: both directions, and what it refuses."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.checkpoints.bundle import Bundle, Part
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.exchange.exporting import open_export, write_diffusers
from ldm.exchange.keymap import reverse, translate
from ldm.exchange.names import compvis_vae_rules
from ldm.generators.diffusion_bundle import codec_of, load_codec

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(command):
    """`run(*arguments, status=0)`: the command, and what it printed."""
    return partial(command, "ldm.export")


@pytest.fixture
def refused(run):
    """`refused(*arguments)`: the one line with which the command ends with status 1."""

    def call(*arguments: str) -> str:
        (line,) = run(*arguments, status=1).err.splitlines()
        return line.removeprefix("ldm: ")

    return call


@pytest.fixture(scope="module")
def bundle(tokenizer, build_network, specs, tmp_path_factory) -> Path:
    """A text-to-image bundle of the kind that diffusers knows."""
    backbone = {**specs["backbone"], "transformer": {**specs["backbone"]["transformer"]}}
    backbone["transformer"] |= {"pool_context": False, "ff_mult": 4}
    named = {
        "backbone": backbone,
        "autoencoder": specs["autoencoder"] | {"patch": 1},
        "text_encoder": specs["text_encoder"] | {"embed_dim": None},
    }
    parts = {name: Part(spec=spec, state=build_network(spec, 7).state_dict()) for name, spec in named.items()}
    table = {"_partial_": True, "num_steps": 1000}
    settings = {
        "size": 16,
        "latents": {"shift": [0.0] * 4, "scale": [0.5] * 4},
        "process": {
            "_target_": "ldm.diffusion.process.Process",
            "schedule": {"_target_": "ldm.diffusion.schedules.scaled_linear"},
            "prediction": {"_target_": "ldm.diffusion.predictions.V"},
            "network_time": {"_target_": "ldm.diffusion.process.table_index", **table},
        },
        "sampler": {
            "_target_": "ldm.diffusion.samplers.Sampling",
            "method": {"_target_": "ldm.diffusion.samplers.dpmpp_2m", "_partial_": True},
            "grid": {"_target_": "ldm.diffusion.grids.uniform", "_partial_": True},
            "steps": 4,
        },
        "guidance": {"_target_": "ldm.diffusion.guidance.cfg", "_partial_": True, "scale": 2.0},
    }
    path = tmp_path_factory.mktemp("own") / "bundle"
    return write_bundle(path, parts=parts, tokenizer=tokenizer, settings=settings)


@pytest.fixture(scope="module")
def folder(bundle, tmp_path_factory) -> Path:
    """The bundle as a folder of diffusers. Read it, never write to it."""
    out = tmp_path_factory.mktemp("exported") / "folder"
    return write_diffusers(open_export(Bundle.open(bundle), {}), out, dtype=torch.float32)


@pytest.mark.parametrize(("form", "name"), [("diffusers", "folder"), ("safetensors", "one.safetensors")])
def test_out_and_in_again_is_the_same_bundle(run, bundle, tmp_path, form, name):
    run(f"bundle={bundle}", f"to={form}", f"out={tmp_path / name}")
    run(f"from={tmp_path / name}", f"out={tmp_path / 'bundle'}")
    ours, back = Bundle.open(bundle), Bundle.open(tmp_path / "bundle")
    for part in ours.names:
        expected, found = ours.part(part).state, back.part(part).state
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    for entry in ("size", "latents", "tokenizer"):
        assert back.entry(entry) == ours.entry(entry)
    assert back.entry("origin")["imported_from"] == name


def test_an_autoencoder_in_a_file_of_its_own_is_one_for_a_codec(run, bundle, tmp_path):
    """With CompVis' names, which say nothing of its sizes: the command's group does."""
    own = translate(Bundle.open(bundle).part("autoencoder").state, reverse(compvis_vae_rules(num_levels=2)))
    save_file({name: tensor.contiguous() for name, tensor in own.items()}, tmp_path / "kl.safetensors")
    sizes = {"channels": 8, "multipliers": "[1,2]", "blocks_per_level": 1, "norm_groups": 4}
    run(
        f"from={tmp_path / 'kl.safetensors'}",
        f"out={tmp_path / 'kl'}",
        "latent_scale=0.5",
        *(f"autoencoder.{name}={value}" for name, value in sizes.items()),
    )
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    codec = load_codec(autoencoder=str(tmp_path / "kl"), text_encoder=str(bundle))
    expected = codec_of(Bundle.open(bundle), Bundle.open(bundle)).encode_images(images)
    assert torch.equal(codec.encode_images(images).mean, expected.mean)


def test_precision_is_that_of_the_files(run, bundle, tmp_path):
    run(f"bundle={bundle}", "to=diffusers", f"out={tmp_path / 'half'}", "precision=float16")
    weights = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_a_process_that_is_typed_is_held_against_what_the_files_say(run, refused, folder, tmp_path):
    command = [f"from={folder}", f"out={tmp_path / 'bundle'}", "process=sd15"]
    assert refused(*command) == (
        f"{folder} declares prediction_type=v_prediction (its scheduler), but process= is "
        "prediction_type=epsilon: leave process= out, or add declared=ignore if the file is wrong"
    )
    run(*command, "declared=ignore")
    process = Bundle.open(tmp_path / "bundle").entry("process")
    assert process["prediction"] == {"_target_": "ldm.diffusion.predictions.Eps"}


def test_steps_and_sampler_may_be_others_than_the_bundles(run, bundle, tmp_path):
    run(f"bundle={bundle}", "to=diffusers", f"out={tmp_path / 'ddim'}", "+sampler=ddim", "steps=7")
    assert "DDIMScheduler" in (tmp_path / "ddim" / "model_index.json").read_text()
    assert "num_inference_steps=7, guidance_scale=2" in (tmp_path / "ddim" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "write from=<weights> to make a bundle, or to=diffusers to export one"),
        (["from=x", "to=diffusers", "out=y"], "write from=<weights> to make a bundle"),
        (["to=gguf", "out=y"], "to=gguf is unknown: write one of diffusers, safetensors, onnx"),
        (["to=onnx", "out=y", "precision=float16"], "precision=float16 is not for to=onnx"),
        (["to=diffusers"], "out is missing"),
        (["from=x", "out=ldm"], "out=ldm exists already"),
        (["to=safetensors", "out=y"], "out=y is to be one file: name it out=y.safetensors"),
        (["from=x", "out=y", "declared=maybe"], "declared=maybe is unknown: write one of take, ignore"),
        (["from=x", "out=y", "precision=int8"], "precision=int8 is unknown"),
        (["from=nothing/here", "out=y"], "from=nothing/here does not exist: hf download"),
        (["from=hf://a/b@main", "out=y"], "from=hf://a/b@main is not pinned"),
        (["from=README.md", "out=y"], "README.md is neither a whole safetensors file nor a zip"),
        (["from=conf", "out=y"], "there is no conf/config.json"),
        (
            ["to=diffusers", "out=y", "+sampler=heun"],
            "sampler.method ldm.diffusion.samplers.heun can't be written for diffusers' flows, only ddim",
        ),
        (["text_stat=last"], "there is no key 'text_stat', did you mean 'text_state'?"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence_and_makes_nothing(refused, monkeypatch, arguments, sentence):
    monkeypatch.chdir(ROOT)
    assert refused(*arguments).startswith(sentence)
    assert not (ROOT / "y").exists()


@pytest.fixture
def others(bundle) -> dict[str, tuple[str, dict]]:
    """By the name of a network that other libraries lack, the part that it can be, and its arguments."""
    own = Bundle.open(bundle)
    unet, text = own.spec("backbone"), own.spec("text_encoder")
    sizes = {key: text[key] for key in ("vocab_size", "context_length", "width")}
    reading = {"net": unet, "context_length": sizes["context_length"], "num_layers": 1, "num_heads": 2}
    transformer = {"latent_channels": 4, "context_dim": sizes["width"], "width": 16, "depth": 1}
    return {
        "ldm.models.text_encoders.ReadingDenoiser": ("backbone", reading),
        "ldm.models.dit.DiT": ("backbone", transformer | {"num_heads": 2, "ff_mult": 2, "patch": 1}),
        "ldm.models.text_encoders.TokenVectors": ("text_encoder", sizes),
    }


@pytest.mark.parametrize(("form", "name"), [("diffusers", "folder"), ("safetensors", "one.safetensors")])
@pytest.mark.parametrize(
    "network", ["text_encoders.ReadingDenoiser", "dit.DiT", "text_encoders.TokenVectors"]
)
def test_a_network_that_other_libraries_lack_is_refused_by_its_name(
    refused, build_network, bundle, others, tmp_path, form, name, network
):
    own, target = Bundle.open(bundle), f"ldm.models.{network}"
    part, arguments = others[target]
    spec = {"_target_": target, **arguments}
    parts = {each: own.part(each) for each in own.names}
    parts[part] = Part(spec=spec, state=build_network(spec, 7).state_dict())
    settings = {key: own.config[key] for key in ("size", "latents", "process", "sampler", "guidance")}
    made = write_bundle(tmp_path / "bundle", parts=parts, tokenizer=own.tokenizer(), settings=settings)
    sentence = refused(f"bundle={made}", f"to={form}", f"out={tmp_path / name}")
    assert f"is {target}, which this format can't hold: only ldm.models." in sentence
    assert not (tmp_path / name).exists()


def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it(refused, monkeypatch):
    monkeypatch.setattr("ldm.export.find_spec", lambda name: None if name == "onnxscript" else name)
    sentence = refused("to=onnx", "out=y")
    assert sentence == "to=onnx needs onnxscript: pip install onnxscript onnxruntime"


def test_an_unknown_state_of_the_text_encoder_is_refused(refused, folder, tmp_path):
    sentence = refused(f"from={folder}", f"out={tmp_path / 'b'}", "text_state=first")
    assert sentence == "text_state=first is unknown: write last or penultimate"


def test_options_are_refused_before_torch_is_there():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['command', 'to=gguf', 'out=y']\n"
        "try:\n"
        "    runpy.run_module('ldm.export', run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ldm: to=gguf is unknown")
