"""The systems on text states and codes by their experiments: trained, sampled, reproduced and evaluated."""

import json

import pytest
from PIL import Image

from ldm.checkpoints.bundle import Bundle
from ldm.evaluation.results import read_results

pytestmark = pytest.mark.usefixtures("unrendered_figures")

PRIOR = ["num_codes=8", "width=16", "depth=1", "num_heads=2"]
SIZES = {
    "emoji_vqdiffusion": ["num_codes=16", "grid=4", "num_steps=10", "width=16", "depth=1", "num_heads=2"],
    "emoji_vqvae2": [
        *(f"{level}.{size}" for level in ("top", "bottom") for size in PRIOR),
        *("top.grid=2", "bottom.grid=4", "bottom.coarse.grid=2", "bottom.coarse.num_codes=8"),
    ],
}
SAMPLING = {"emoji_vqdiffusion": ["steps=3", "truncation=0.9"], "emoji_vqvae2": ["temperature=0.9"]}


@pytest.fixture(scope="module")
def tokenizers(codes_path, two_levels_path):
    """The bundle of each experiment's tokenizer, with random weights."""
    return {"emoji_vqdiffusion": codes_path, "emoji_vqvae2": two_levels_path}


@pytest.fixture(scope="module", params=SIZES)
def arguments(request, emoji, tokenizers, bundle_path):
    """The experiment's name, and the arguments of a training of two steps."""
    name = request.param
    options = [f"data.root={emoji}", "data.size=16", "batch_size=4", "steps=2"]
    options += ["trainer.val_check_interval=2"]
    options += [f"codes.image_tokenizer={tokenizers[name]}", f"codec.text_encoder={bundle_path}"]
    options += ["text_encoder.width=16", "text_encoder.context_length=16", "callbacks.samples.seeds=[0]"]
    options += [f"backbone.{size}" for size in SIZES[name]]
    options += [f"model.stage.sampling.{each}" for each in SAMPLING[name]]
    return name, [f"+experiment={name}", *options]


@pytest.fixture(scope="module")
def run(command, arguments, tmp_path_factory):
    """The experiment's name and the folder of its run. Read it, never write to it."""
    (name, options), runs = arguments, tmp_path_factory.mktemp("runs")
    command("ldm.train", *options, f"runs={runs}")
    (folder,) = (runs / name).iterdir()
    return name, folder


def test_an_experiment_runs_from_training_to_pictures(command, run, tmp_path):
    name, folder = run
    assert Bundle.open(folder).names == ["backbone", "image_tokenizer", "text_encoder"]
    assert [path.name for path in (folder / "samples").iterdir()] == ["step=000002.png"]
    out = tmp_path / "out"
    own = "+options.purity=2" if name == "emoji_vqdiffusion" else "+options.top_k=5"
    asked = ("prompts=[a cat,a hat]", "per_prompt=1", "scale=2", own)
    command("ldm.sample", f"bundle={folder}", *asked, f"out={out}")
    facts = [json.loads(line) for line in (out / "pictures.jsonl").read_text().splitlines()]
    assert [(each["prompt"], each["scale"]) for each in facts] == [("a cat", 2), ("a hat", 2)]
    said = command("ldm.sample", f"again={out / '0001.png'}", f"bundle={folder}", f"out={out}").out
    assert f"every pixel is that of {out / '0001.png'}" in said
    with Image.open(out / "0001.png") as picture:
        assert picture.size == (16, 16)


def test_shards_are_refused_before_anything_is_made(command, arguments, tmp_path):
    sharded = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", f"runs={tmp_path}")
    ended = command("ldm.train", *arguments[1], *sharded, status=1)
    assert "trainer=fsdp shards the denoiser of latents alone" in ended.sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", ["emoji_vqdiffusion"], indirect=True)
def test_it_is_evaluated(command, run, emoji, tmp_path):
    sets = "protocol.sets=[{name:train,split:train,captions:6,metrics:[nearest]}]"
    options = (f"bundle={run[1]}", f"data.root={emoji}", "protocol=quick", f"out={tmp_path / 'numbers'}")
    command("ldm.evaluate", *options, sets)
    protocol = read_results(tmp_path / "numbers" / "results.json")["protocol"]
    assert (protocol["steps"], protocol["truncation"], protocol["nfe"]) == (3, 0.9, 6)


def test_what_it_lacks_is_refused_before_anything_is_made(command, run, tmp_path):
    name, folder = run
    asked = "negative=fog" if name == "emoji_vqvae2" else "+options.top_k=3"
    options = (f"bundle={folder}", "prompts=[a cat]", asked, f"out={tmp_path / 'out'}")
    assert "has no option" in command("ldm.sample", *options, status=1).sentence
    assert not (tmp_path / "out").exists()
