"""How a system that is not diffusion is added: `retrieval/retrieval.py` and its yaml, and no other file.

`LDM_PACKAGES=retrieval` lets the commands build what the package holds and find its `conf/`. The tests train
it, sample from its bundle, evaluate it, reproduce a picture and resume the training, as of any other system.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ldm import UserError
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.bundle import Bundle
from ldm.codec import to_float, to_uint8
from ldm.construct import PACKAGES
from ldm.data.datamodule import PictureData
from ldm.evaluation.results import read_results
from ldm.generators.denoiser_writer import bundle_of_state
from ldm.generators.generator import Generator, open_generator

FOLDER = Path(__file__).parent / "retrieval"


@pytest.fixture(scope="module", autouse=True)
def _package():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv(PACKAGES, "retrieval")
        yield


@pytest.fixture(scope="module")
def run(command, emoji, tmp_path_factory):
    """The folder of a run of five steps, which see all 20 pictures once. Read it, never write to it."""
    runs = tmp_path_factory.mktemp("runs")
    data = (f"data.root={emoji}", "data.size=16", "batch_size=4", "steps=5", "trainer.val_check_interval=5")
    command("ldm.train", "+experiment=retrieval", *data, "model.stage.nearest=2", f"runs={runs}")
    (folder,) = (runs / "retrieval").iterdir()
    return folder


@pytest.fixture
def refused(command):
    """`refused(module, *arguments)`: the sentence with which a command ends."""
    return lambda module, *arguments: command(module, *arguments, status=1).sentence


def pixels(path):
    with Image.open(path) as picture:
        return picture.tobytes()


def test_it_offers_what_a_generator_offers_and_finds_the_pictures_of_its_captions(run, emoji):
    generator = open_generator(Bundle.open(run), nearest=1).generator
    assert isinstance(generator, Generator)
    assert (generator.size, generator.nfe, generator.reconstruct) == (16, 1, None)
    train_set = PictureData(root=str(emoji), size=16, batch_size=4).train
    captions = [own[0] for own in train_set.texts()]
    images = torch.stack([train_set.image(number) for number in range(len(train_set))])
    found = generator(captions, [0] * len(captions))
    assert found.dtype == torch.uint8
    # the states of a picture's captions lie nearer to each other than to those of others, for nearly all
    assert (found == images).flatten(1).all(dim=1).float().mean() > 0.8


def test_the_mean_of_all_pictures_is_what_a_prompt_finds_without_a_choice(run, emoji):
    generator = open_generator(Bundle.open(run), nearest=20).generator
    generator.memory.sharpness.data.fill_(-torch.inf)  # every picture counts the same
    train_set = PictureData(root=str(emoji), size=16, batch_size=4).train
    images = torch.stack([train_set.image(number) for number in range(len(train_set))])
    expected = to_uint8(to_float(images).mean(dim=0, keepdim=True))
    assert (generator(["a cat"], [0]).int() - expected.int()).abs().max() <= 1


def test_a_training_leaves_a_bundle_and_sheets_of_pictures(run):
    assert Bundle.open(run).config["generator"] == {"_target_": "retrieval.open_retrieval", "nearest": 2}
    assert Bundle.open(run).names == ["memory", "text_encoder"]
    (sheet,) = (run / "samples").glob("*.png")
    assert sheet.name == "step=000005.png"
    assert "pipeline_tag: text-to-image" in (run / "bundle" / "README.md").read_text()


def test_it_is_sampled_and_a_picture_is_reproduced_from_its_record(command, run, tmp_path):
    out = tmp_path / "out"
    command("ldm.sample", f"bundle={run}", "prompts=[a cat,a hat]", "per_prompt=1", f"out={out}")
    facts = [json.loads(line) for line in (out / "pictures.jsonl").read_text().splitlines()]
    assert [(each["prompt"], each["nearest"]) for each in facts] == [("a cat", 2), ("a hat", 2)]
    with Image.open(out / "0001.png") as picture:
        assert "Nearest: 2, Seed: 0, Size: 16x16" in picture.text["parameters"]
    said = command("ldm.sample", f"again={out / '0001.png'}", f"bundle={run}", f"out={out}").out
    assert f"every pixel is that of {out / '0001.png'}" in said
    assert pixels(out / "0001_again.png") == pixels(out / "0001.png")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("negative=fog", "retrieval has no option 'negative'"),
        ("scale=3", "has no option 'scale'; it has nearest"),
        ("+sampler=ddim", "has no option 'sampler'; it has nearest"),
        ("image=IMAGE", "takes no source pictures"),
    ],
)
def test_what_it_lacks_is_refused_before_anything_is_made(refused, run, tmp_path, argument, sentence):
    image = tmp_path / "a.png"
    Image.new("RGB", (16, 16)).save(image)
    asked = argument.replace("IMAGE", str(image))
    options = (f"bundle={run}", "prompts=[a cat]", asked, f"out={tmp_path / 'out'}")
    assert sentence in refused("ldm.sample", *options)
    assert not (tmp_path / "out").exists()


def test_it_is_evaluated(command, run, emoji, tmp_path):
    sets = "protocol.sets=[{name:train,split:train,captions:6,metrics:[nearest]}]"
    options = (f"bundle={run}", f"data.root={emoji}", "protocol=quick", f"out={tmp_path / 'out'}")
    command("ldm.evaluate", *options, sets)
    found = read_results(tmp_path / "out" / "results.json")
    assert (found["protocol"]["nearest"], found["protocol"]["nfe"]) == (2, 1)
    assert "sampler" not in found["protocol"]
    assert found["rows"][0]["params"] == 1
    assert "| nearest | 2 |" in (tmp_path / "out" / "report.md").read_text()


def test_it_is_refused_by_what_only_latent_diffusion_can_do(refused, run, tmp_path):
    for form in ("diffusers", "safetensors", "onnx"):
        out = tmp_path / f"out.{form}"
        sentence = refused("ldm.export", f"bundle={run}", f"to={form}", f"out={out}")
        assert "holds no latent diffusion but what retrieval.open_retrieval opens" in sentence
        assert not out.exists()
    with pytest.raises(UserError, match="of retrieval, which trains no denoiser"):
        bundle_of_state(run / "checkpoints" / "step=00000005", tmp_path / "early")


def test_a_dry_run_prints_what_it_takes(command, emoji, tmp_path):
    options = (f"data.root={emoji}", "batch_size=4", "dry_run=true", f"runs={tmp_path}")
    assert "text encoder" in command("ldm.train", "+experiment=retrieval", *options).out
    assert not list(tmp_path.iterdir())


def test_a_resumed_training_ends_with_the_same_bits(emoji, make_trainer, adamw, tmp_path):
    import retrieval

    def stage():
        return retrieval.RetrievalStage(
            net=retrieval.Memory(capacity=20, size=16, width=128), text_encoder="shipped", optimizer=adamw
        )

    def trained(one, steps, **options):
        data = PictureData(root=str(emoji), size=16, batch_size=4, seed=3)
        saving = SaveStates(folder=str(tmp_path / "states"), every=3)
        make_trainer(steps, saving).fit(one, datamodule=data, weights_only=True, **options)
        return one.state_dict()

    whole = trained(stage(), 6)
    state = tmp_path / "states" / "step=00000003" / "state.ckpt"
    resumed = trained(stage(), 6, ckpt_path=state)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_no_bundle_chooses_the_packages_of_a_command(run, refused, monkeypatch, tmp_path):
    monkeypatch.delenv(PACKAGES)
    sentence = refused("ldm.sample", f"bundle={run}", "prompts=[a cat]", f"out={tmp_path / 'out'}")
    assert "generates by retrieval.open_retrieval, which is code of another package" in sentence
    assert "set LDM_PACKAGES=retrieval" in sentence
    assert "there is no experiment 'retrieval'" in refused("ldm.train", "+experiment=retrieval")


@pytest.mark.parametrize("target", ["os.system", "retrieval.F.relu", "retrieval.Path", "subprocess.run", 3])
def test_a_bundle_can_not_name_what_its_package_does_not_define(run, copied_bundle, target):
    config = yaml.safe_load((copied_bundle / "config.yaml").read_text())
    config["generator"] = {"_target_": target}
    (copied_bundle / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"code of another package|is refused|does not exist"):
        open_generator(Bundle.open(copied_bundle))


@pytest.mark.parametrize("name", ["os", "builtins", "my systems", "a.b"])
def test_a_module_of_pythons_own_is_no_package_of_a_user(refused, monkeypatch, name):
    monkeypatch.setenv(PACKAGES, name)
    assert f"LDM_PACKAGES={name}: name a package of your own" in refused("ldm.train", "dry_run=true")


def test_a_package_that_is_not_there_is_named(refused, monkeypatch):
    monkeypatch.setenv(PACKAGES, "no_such_package")
    sentence = refused("ldm.train", "+experiment=emoji")
    assert "LDM_PACKAGES=no_such_package: there is no such package" in sentence


@pytest.fixture
def copied_bundle(run, tmp_path):
    """A copy of the bundle, to be changed."""
    import shutil

    return shutil.copytree(run / "bundle", tmp_path / "bundle")
