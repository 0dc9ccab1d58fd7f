"""The systems that generate code after code, by the commands: trained, sampled, reproduced, measured."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.evaluation.results import read_results
from ldm.generators.generator import open_generator
from tests.autoregressive.tiny import BACKBONES, SIZES

pytestmark = pytest.mark.usefixtures("unrendered_figures")


@pytest.fixture(scope="module")
def arguments(emoji, codes_path, clip_path, tmp_path_factory):
    """Those of a training of CogView of three steps."""
    runs = tmp_path_factory.mktemp("runs")
    backbone = [f"backbone.{name}={value}" for name, value in SIZES.items()]
    data = (f"data.root={emoji}", "data.size=16", "batch_size=4", "steps=3", "trainer.val_check_interval=3")
    parts = (f"codes.image_tokenizer={codes_path}", f"codec.text_encoder={clip_path}")
    shown = ("callbacks.samples.prompts=[a cat]", "callbacks.samples.seeds=[0]", f"runs={runs}")
    return ["+experiment=emoji_cogview", *data, *parts, *backbone, *shown]


@pytest.fixture(scope="module")
def run(command, arguments):
    """The folder of that training. Read it, never write to it."""
    command("ldm.train", *arguments)
    (folder,) = (Path(arguments[-1].removeprefix("runs=")) / "emoji_cogview").iterdir()
    return folder


def test_a_training_leaves_a_bundle_that_says_how_it_is_sampled(run):
    bundle = Bundle.open(run)
    assert bundle.names == ["backbone", "image_encoder", "image_tokenizer", "text_encoder"]
    assert bundle.config["generator"] == {
        "_target_": "ldm.generators.autoregressive.open_autoregressive",
        **{
            "temperature": 1.0,
            "top_k": 200,
            "top_p": 1.0,
            "scale": 1.0,
            "candidates": 1,
            "rerank": "caption",
        },
    }
    assert bundle.config["codec_origin"].keys() == {"image_tokenizer", "text_encoder"}
    assert bundle.config["origin"]["experiment"] == "emoji_cogview"
    assert [each.name for each in (run / "samples").iterdir()] == ["step=000003.png"]


def test_pictures_are_sampled_with_options_and_reproduced_from_their_records(command, run, tmp_path):
    out = tmp_path / "out"
    options = ("scale=1.5", "negative=fog", "+options.candidates=2", "+options.top_p=0.9")
    command("ldm.sample", f"bundle={run}", "prompts=[a cat]", "per_prompt=2", f"out={out}", *options)
    facts = [json.loads(line) for line in (out / "pictures.jsonl").read_text().splitlines()]
    expected = {"scale": 1.5, "negative": "fog", "candidates": 2, "top_p": 0.9, "rerank": "caption"}
    assert expected.items() <= facts[1].items()
    assert facts[1]["steps"] is None
    said = command("ldm.sample", f"again={out / '0001.png'}", f"bundle={run}", f"out={out}").out
    assert f"every pixel is that of {out / '0001.png'}" in said
    with Image.open(out / "0000.png") as picture:
        assert "Top_p: 0.9" in picture.text["parameters"]


def test_a_picture_is_completed(command, run, emoji, tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (16, 16), (200, 0, 0)).save(image)
    out = tmp_path / "out"
    command("ldm.sample", f"bundle={run}", "prompts=[a cat]", "per_prompt=1", f"image={image}", f"out={out}")
    assert json.loads((out / "pictures.jsonl").read_text())["strength"] == 0.6


def test_it_is_evaluated_with_its_candidates_and_their_cost(command, run, emoji, tmp_path):
    sets = "protocol.sets=[{name:train,split:train,captions:4,metrics:[clip_score]}]"
    options = (f"bundle={run}", f"data.root={emoji}", "protocol=quick", f"out={tmp_path / 'out'}")
    command("ldm.evaluate", *options, sets, "+options.candidates=2")
    found = read_results(tmp_path / "out" / "results.json")
    assert (found["protocol"]["candidates"], found["protocol"]["nfe"]) == (2, 32)
    assert "own_clip_score" in {row["metric"] for row in found["rows"]}


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("+options.candidates=0", "candidates=0 must lie in 1 to 512"),
        ("+options.top_p=1.5", "top_p=1.5 must lie in (0, 1]"),
        ("steps=4", "has no option 'steps'"),
        ("+sampler=ddim", "has no option 'sampler'"),
    ],
)
def test_options_that_it_can_not_have_are_refused_by_the_command(command, run, tmp_path, argument, sentence):
    out = tmp_path / "out"
    ended = command("ldm.sample", f"bundle={run}", "prompts=[a cat]", argument, f"out={out}", status=1)
    assert sentence in ended.sentence
    assert not out.exists()


def test_options_of_it_are_refused_by_other_systems(command, bundle_path, tmp_path):
    arguments = (f"bundle={bundle_path}", "prompts=[a cat]", "+options.top_k=3", f"out={tmp_path / 'out'}")
    assert "has no option 'top_k'" in command("ldm.sample", *arguments, status=1).sentence


def test_another_tokenizer_of_pictures_in_a_bundle_is_refused(run, tmp_path):
    path = shutil.copytree(run / "bundle", tmp_path / "bundle")
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["codes"] = "0" * 64
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(BundleError, match="is not the one that its backbone was trained with"):
        open_generator(Bundle.open(path))


def test_a_run_is_compared_by_the_contents_of_its_tokenizer_and_clip(
    command, run, arguments, codes_path, clip_path, tmp_path
):
    path = shutil.copytree(run, tmp_path / "run")
    moved = [f"codes.image_tokenizer={shutil.copytree(codes_path, tmp_path / 'codes')}"]
    moved += [f"codec.text_encoder={shutil.copytree(clip_path, tmp_path / 'clip')}"]
    assert "is finished" in command("ldm.train", *arguments, *moved, f"resume={path}").out
    record = json.loads((path / "run.json").read_text())
    for key in ("codes.image_tokenizer", "codec.text_encoder", "model.stage.clip.bundle"):
        inputs = record["inputs"] | {key: "0" * 64}
        (path / "run.json").write_text(json.dumps(record | {"inputs": inputs}))
        ended = command("ldm.train", *arguments, f"resume={path}", status=1)
        assert f"trained with {key}=" in ended.sentence
        assert "(sha256 000000000000) and you ask for" in ended.sentence
        assert "which can't change within a run" in ended.sentence


SHARDED = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1")


def test_shards_are_refused_and_its_target_is_nats_per_code(command, arguments, tmp_path):
    own = (*arguments, f"runs={tmp_path}")
    ended = command("ldm.train", *own, *SHARDED, status=1)
    assert "denoiser of latents alone, and AutoregressiveStage trains another network" in ended.sentence
    assert not list(tmp_path.iterdir())
    command("ldm.train", *own, "target=9", "trainer.val_check_interval=1")
    (run,) = (tmp_path / "emoji_cogview").iterdir()
    assert (run / "metrics.jsonl").read_text().count("val/loss_fixed") == 1  # of three validations
    assert Bundle.open(run).names[0] == "backbone"


def test_a_dry_run_prints_the_parts(command, emoji, codes_path, clip_path, tmp_path):
    sizes = [f"backbone.{name}={value}" for name, value in SIZES.items() if name in BACKBONES["clipgen"]]
    options = (f"codes.image_tokenizer={codes_path}", f"codec.text_encoder={clip_path}", "data.size=16")
    ended = command(
        *("ldm.train", "+experiment=emoji_clipgen", f"data.root={emoji}", "batch_size=4", "dry_run=true"),
        *(*options, *sizes, "backbone.prefix_dim=8", f"runs={tmp_path}"),
    )
    assert "image tokenizer" in ended.out
    assert not list(tmp_path.iterdir())
