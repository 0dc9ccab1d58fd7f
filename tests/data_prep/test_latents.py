"""Facts about latents that are made ahead of training."""

import pytest
import torch

from data_prep import latents
from ldm.checkpoints.bundle import BundleError
from ldm.data import stored
from ldm.data.datamodule import PictureData
from ldm.data.latents import LatentData
from ldm.data.shards import PictureDataset

SIZE = 16


@pytest.fixture
def make(copy_emoji, bundle_path):
    """`make(**options)`: the command on a set of its own, whose root it returns."""
    root = copy_emoji()

    def run(**options):
        defaults = {"root": str(root), "size": SIZE, "device": "cpu"}
        networks = {"autoencoder": str(bundle_path), "text_encoder": str(bundle_path)}
        latents.main(latents.Options(**(defaults | networks | options)))
        return root

    return run


def files(root) -> dict[str, int]:
    """All that lies beside the shards, and when it was written."""
    return {str(path): path.stat().st_mtime_ns for path in root.glob("*/**/*") if path.is_file()}


@pytest.mark.parametrize(("flip", "texts"), [(False, "tokens"), (True, "states")])
def test_a_training_finds_what_was_made_ahead(make, codec, flip, texts):
    root = make(flip=flip, texts=texts)
    made = files(root)
    pictures = PictureData(root=str(root), size=SIZE, batch_size=4, flip=flip)
    data = LatentData(pictures=pictures, codec=codec, texts=getattr(stored, f"stored_{texts}"))
    data.setup("fit")
    assert files(root) == made
    row = data.train.sample(0, 0)
    assert torch.isfinite(torch.from_numpy(row["moments"].copy())).all()


def test_moments_and_captions_of_both_splits_are_made(make, capsys):
    root = make()
    numbers = {name: len(PictureDataset(str(root), split=name, size=SIZE)) for name in ("train", "val")}
    told = capsys.readouterr().out.splitlines()
    assert sum("captions" in line and line.endswith("is not seen") for line in told) == 2  # 16 tokens are few
    lines = [line for line in told if " pictures, moments " in line]
    assert [line.split(" pictures")[0] for line in lines] == [f"{name}: {n}" for name, n in numbers.items()]


@pytest.mark.parametrize("other", [{"size": 32}, {"flip": True}, {"autoencoder": "shipped"}])
def test_another_transform_or_autoencoder_never_takes_them_for_its_own(make, other):
    first = set(files(make()))
    both = set(files(make(**other)))
    assert first < both
    assert {path.split("/")[-1] for path in both - first} >= {"shards.json", "made_from.json"}


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"texts": "words"}, ValueError, "texts=words is unknown: write tokens or states"),
        ({"size": 17}, ValueError, "17"),
        ({"autoencoder": "nowhere"}, BundleError, "nowhere"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(make, tmp_path, options, error, sentence):
    with pytest.raises(error, match=sentence):
        make(**options)
    assert not list(tmp_path.glob("*/latents"))
