"""The commands as a user meets them: what they refuse, how fast, and what they leave behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def draw(command, bundle_path, tmp_path):
    """`draw(*arguments)`: four pictures by the tiny bundle, their folder is returned."""

    def call(*arguments) -> Path:
        out = tmp_path / "pictures"
        command("ldm.sample", f"bundle={bundle_path}", f"out={out}", "num_pictures=4", "steps=1", *arguments)
        return out

    return call


@pytest.fixture
def refused(command):
    """`refused(module, *arguments)`: the one line with which a command ends with status 1."""

    def call(module, *arguments) -> str:
        (line,) = command(module, *arguments, status=1).err.splitlines()
        return line.removeprefix("ldm: ")

    return call


@pytest.mark.parametrize(
    ("module", "argument", "sentence"),
    [
        ("ldm.train", "+experiment=emojj", "there is no experiment 'emojj', did you mean 'emoji'?"),
        ("ldm.sample", "promts=[x]", "there is no key 'promts', did you mean 'prompts'?"),
        ("ldm.evaluate", "protocl=quick", "there is no key 'protocl', did you mean 'protocol'?"),
    ],
)
def test_a_mistake_is_answered_at_once_in_a_sentence_and_without_torch(module, argument, sentence):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['command', {argument!r}]\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    used = sum(os.times()[2:4])  # seconds that processes like the one below have computed
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ldm: {sentence}")
    assert sum(os.times()[2:4]) - used < 2


def test_help_and_config_are_shown_without_torch():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['command', '--cfg', 'job', '+experiment=emoji']\n"
        "try:\n"
        "    runpy.run_module('ldm.train', run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "name: emoji" in done.stdout
    assert "_target_: ldm.models.unet.UNet" in done.stdout


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("🍎", None),
        ("红苹果", None),
        ("<|endoftext|> a cat", None),
        ("${oc.env:HOME}, ${seed} and ${nowhere}", None),
        (r"half a \${reference", "half a ${reference"),
        ("50% off, [red] {blue} = (green)", None),
        ("é" * 9999, None),
    ],
)
def test_a_prompt_is_plain_text_whatever_it_holds(draw, prompt, text):
    out = draw(f'prompts=["{prompt}"]')
    with Image.open(out / "0003.png") as picture:
        assert json.loads(picture.text["ldm"])["prompt"] == (text or prompt)
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"000{n}.png" for n in range(4)),
        "pictures.jsonl",
        "sheet.png",
    ]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ('prompts=[""]', "prompt='' is empty"),
        ('prompts=["a cat", " "]', "prompt=' ' is empty"),
        ("prompts=[]", "prompts is empty: write prompts="),
        ("prompts=[null]", "prompt=None is no text"),
        ("prompts=7", "prompt=7 is no text"),
        ("prompts={a: 1}", "Cannot merge"),
        ('prompts=["half a ${reference"]', "half a ${reference"),
        (f'prompts=["{"x" * 100_000}"]', "a prompt of 100000 characters is too long: the limit is 10000"),
    ],
)
def test_a_prompt_that_holds_no_text_or_too_much_is_refused(
    refused, bundle_path, tmp_path, argument, sentence
):
    started = time.process_time()
    assert sentence in refused("ldm.sample", f"bundle={bundle_path}", f"out={tmp_path / 'new'}", argument)
    assert time.process_time() - started < 5
    assert not (tmp_path / "new").exists()


def test_pictures_are_spread_over_the_prompts_and_carry_how_they_were_made(draw):
    out = draw('prompts=["red apple","a cat"]', "seed=7")
    facts = []
    for number in range(4):
        with Image.open(out / f"{number:04d}.png") as picture:
            assert picture.size == (16, 16)
            facts.append(json.loads(picture.text["ldm"]))
    assert [(f["prompt"], f["seed"]) for f in facts] == [
        ("red apple", 7),
        ("red apple", 8),
        ("a cat", 7),
        ("a cat", 8),
    ]
    assert {len(f["bundle"]) for f in facts} == {64}


def test_the_same_command_draws_the_same_pictures(draw):
    first = {path.name: path.read_bytes() for path in draw().iterdir()}
    second = {path.name: path.read_bytes() for path in draw("batch_size=16").iterdir()}
    assert first == second


def test_sampler_guidance_steps_and_scale_can_be_chosen(draw):
    default = (draw() / "sheet.png").read_bytes()
    other = (draw("+sampler=heun", "+guidance=cfg_interval", "scale=5") / "sheet.png").read_bytes()
    assert default != other


@pytest.mark.parametrize(
    ("out", "sentence"),
    [("file", "is a file: name a folder"), ("file/below", "Not a directory")],
)
def test_an_output_that_is_no_folder_is_refused(refused, bundle_path, tmp_path, out, sentence):
    (tmp_path / "file").write_text("mine")
    assert sentence in refused("ldm.sample", f"bundle={bundle_path}", f"out={tmp_path / out}", "steps=1")
    assert (tmp_path / "file").read_text() == "mine"


def test_pictures_are_not_overwritten_where_that_is_refused(draw, refused, bundle_path):
    out = draw()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    arguments = (f"bundle={bundle_path}", f"out={out}", "overwrite=false", "seed=5", "steps=1")
    assert "holds pictures already" in refused("ldm.sample", *arguments)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_missing_bundle_is_refused_and_nothing_is_made(refused, tmp_path):
    arguments = (f"bundle={tmp_path / 'nowhere'}", f"out={tmp_path / 'new'}")
    assert "there is no bundle at" in refused("ldm.sample", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle_is_refused_and_nothing_is_made(refused, write_tiny_bundle, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    file = bundle / "backbone.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "backbone.safetensors is damaged" in refused(
        "ldm.sample", f"bundle={bundle}", f"out={tmp_path / 'new'}"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("seed=${nowhere}", "Interpolation key 'nowhere' not found"),
        ("seed=${seed}", "ecurs"),
        ("out=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
        ("precision=float8", "float8"),
        ("+guidance=none scale=3", "has no scale"),
        ("+sampler.steps=3", "sampler"),
    ],
)
def test_options_that_can_not_be_followed_are_refused(refused, bundle_path, tmp_path, argument, sentence):
    out = [] if argument.startswith("out") else [f"out={tmp_path / 'new'}"]
    assert sentence in refused("ldm.sample", f"bundle={bundle_path}", *out, *argument.split())
    assert not (tmp_path / "new").exists()


TINY = (
    "model=autoencoder",
    "callbacks=autoencoder",
    "autoencoder.channels=8",
    "autoencoder.norm_groups=4",
    "autoencoder.blocks_per_level=1",
    "data.size=16",
    "batch_size=4",
    "steps=3",
    "trainer.val_check_interval=3",
    "trainer.precision=32",
)


def test_training_writes_a_run_and_a_bundle_once(command, emoji, tmp_path):
    arguments = (*TINY, "name=tiny", f"runs={tmp_path}", f"data.root={emoji}")
    command("ldm.train", *arguments)
    (folder,) = (tmp_path / "tiny").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "samples", "checkpoints", "bundle"} <= names
    assert (folder / "samples" / "step=000003.png").is_file()
    assert not list(folder.rglob(".tmp*"))
    assert f"{folder} is finished" in command("ldm.train", *arguments).out
    assert len(list((tmp_path / "tiny").iterdir())) == 1


def test_a_run_that_died_before_its_bundle_was_whole_writes_the_same_one(command, emoji, tmp_path):
    arguments = (*TINY, "name=tiny", f"runs={tmp_path}", f"data.root={emoji}")
    command("ldm.train", *arguments)
    (folder,) = (tmp_path / "tiny").iterdir()
    first = (folder / "bundle" / "autoencoder.safetensors").read_bytes()
    metrics = (folder / "metrics.jsonl").read_text()
    shutil.rmtree(folder / "bundle")
    assert f"continuing {folder}" in command("ldm.train", *arguments).out
    assert (folder / "bundle" / "autoencoder.safetensors").read_bytes() == first
    assert (folder / "metrics.jsonl").read_text() == metrics


def test_training_without_data_leaves_no_bundle_and_says_how_to_get_data(refused, tmp_path):
    sentence = refused("ldm.train", *TINY, "name=x", f"runs={tmp_path}", f"data.root={tmp_path / 'none'}")
    assert "prepare one with python -m data_prep" in sentence
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resume=/nowhere"], "resume=/nowhere is no run directory"),
        (["data.size=17"], "17"),
        (["autoencoder.norm_groups=3"], "3"),
        (["+autoencoder.colour=red"], "unexpected keyword argument 'colour'"),
        (["optimizer._target_=os.system"], "_target_ 'os.system' is refused"),
        (["+callbacks.extra={_target_: ldm.data.index.json.loads}"], "json.loads' is refused"),
    ],
)
def test_trainings_that_can_not_be_are_refused(refused, emoji, tmp_path, arguments, sentence):
    assert sentence in refused("ldm.train", *TINY, f"runs={tmp_path}", f"data.root={emoji}", *arguments)
    assert not list(tmp_path.rglob("bundle"))
