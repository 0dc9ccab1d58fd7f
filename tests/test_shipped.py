"""The bundle that ships with the package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_prep.emoji import ASSETS, draw_validation, read_samples
from data_prep.making import write_shards
from ldm.checkpoints.bundle import SHIPPED, Bundle
from ldm.codec import Codec
from ldm.data.index import ShardIndex
from ldm.data.shards import PictureDataset
from ldm.generators.diffusion_bundle import load_codec, open_latent_diffusion
from ldm.metrics.reconstruction import psnr
from ldm.models.vae import Posterior

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> torch.Tensor:
    """The pictures that `python -m data_prep.emoji` holds out."""
    captions = json.loads((ASSETS / "captions.json").read_text(encoding="utf-8"))
    keys = draw_validation(list(captions), share=0.1, seed=0)
    root = tmp_path_factory.mktemp("held_out")
    samples = read_samples({key: entry for key, entry in captions.items() if key in keys})
    shards = tuple(write_shards(samples, root=root, split="val"))
    ShardIndex(root=root, name="emoji", shards=shards).save()
    return PictureDataset(str(root), split="val", size=64).images()


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec(autoencoder="shipped", text_encoder="shipped")


@pytest.fixture(scope="module")
def posterior(codec, held_out) -> Posterior:
    return codec.encode_images(held_out)


def test_it_is_small_and_holds_data_only():
    files = sorted(SHIPPED.iterdir())
    assert sum(file.stat().st_size for file in files) <= 25e6
    assert {file.suffix for file in files} == {".safetensors", ".yaml", ".json", ".md"}


def test_its_autoencoder_keeps_27_db_of_pictures_that_it_has_not_seen(codec, posterior, held_out):
    rebuilt = torch.cat([codec.decode(means) for means in posterior.mean.split(32)])
    assert psnr(rebuilt, held_out).mean() >= 27


def test_its_latents_have_mean_0_and_deviation_1(posterior):
    assert posterior.mean.mean().abs() < 0.05
    assert posterior.mean.var().add(posterior.std.square().mean()).sqrt() == pytest.approx(1, abs=0.1)


def test_the_same_seed_draws_the_same_picture_to_the_bit():
    first, second = (open_latent_diffusion(Bundle.open("shipped"), steps=5) for _ in range(2))
    assert torch.equal(first(["red apple"], [7]), second(["red apple"], [7]))


def test_the_command_generates_without_lightning_and_without_torchs_compiler(tmp_path):
    program = (
        "import sys; sys.argv = ['sample', 'num_pictures=2', 'steps=2', 'out=drawn']\n"
        "from ldm.sample import main; main()\n"
        "heavy = {'pytorch_lightning', 'torchmetrics', 'wandb', 'webdataset', 'scipy', 'matplotlib'}\n"
        "compiler = {'torch._dynamo', 'torch._inductor', 'sympy'}\n"
        "assert not (heavy | compiler) & set(sys.modules)\n"
        "assert len(sys.modules) < 1800, len(sys.modules)"  # 1,576, half of them torch's
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "drawn" / "0000.png") as picture:
        assert picture.size == (64, 64)
        assert json.loads(picture.text["ldm"])["prompt"] == "red apple"
