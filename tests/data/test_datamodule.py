"""Facts about the batches of pictures that a trainer gets."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.making import write_shards
from ldm.data.augment import random_resized
from ldm.data.datamodule import Buckets, PictureData
from ldm.data.index import ShardIndex
from ldm.data.shards import Sample


@pytest.fixture
def batches(emoji, make_trainer):
    """All training batches of six steps of two batches each."""

    def read(**options) -> list:
        data = PictureData(root=str(emoji), size=16, batch_size=4, **options)
        data.trainer = make_trainer(6, accumulate_grad_batches=2)
        return list(data.train_dataloader())

    return read


def test_a_training_has_steps_times_accumulation_batches(batches):
    made = batches()
    assert len(made) == 12
    assert made[0]["image"].shape == (4, 3, 16, 16)
    assert made[0]["image"].dtype == torch.uint8
    assert torch.cat([batch["position"] for batch in made]).tolist() == list(range(48))


def test_workers_change_no_picture_and_no_caption(batches):
    for ours, theirs in zip(batches(), batches(num_workers=2), strict=True):
        assert torch.equal(ours["image"], theirs["image"])
        assert ours["captions"] == theirs["captions"]


def test_captions_are_the_pictures_own_and_change_over_epochs(emoji, batches):
    data = PictureData(root=str(emoji), size=16, batch_size=4)
    chosen = {}
    for batch in batches():
        for number, text in zip(batch["index"].tolist(), batch["captions"], strict=True):
            assert text in data.train.captions(number)
            chosen.setdefault(number, set()).add(text)
    assert any(len(texts) > 1 for texts in chosen.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_is_the_same_every_time(emoji, seed):
    data = PictureData(root=str(emoji), size=16, batch_size=3, seed=seed)
    first, second = (list(data.val_dataloader()) for _ in range(2))
    assert [batch["captions"] for batch in first] == [batch["captions"] for batch in second]
    assert torch.cat([batch["index"] for batch in first]).tolist() == [0, 1, 2, 3]
    other = PictureData(root=str(emoji), size=16, batch_size=3, seed=seed + 1)
    assert [b["captions"] for b in other.val_dataloader()] == [b["captions"] for b in first]


@pytest.fixture
def photographs(tmp_path):
    """Folder of a set of 13 pictures of three shapes, each its own colour; some captions name a side."""
    samples = []
    for number in range(13):
        height, width = [(40, 40), (36, 64), (64, 36)][number % 3]
        picture = Image.new("RGB", (width, height), (9 * number, 0, 0))
        picture.paste((0, 255, 0), (0, 0, width // 2, height))  # the left half
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        text = "a wall, green on the left" if number % 2 else "a green wall"
        record = {"key": f"k{number}", "texts": [text], "comment_nos": [0]}
        samples.append(Sample(image=buffer.getvalue(), extension="png", **record))
    shards = tuple(write_shards(samples, root=tmp_path, split="train"))
    ShardIndex(root=tmp_path, name="photographs", shards=shards).save()
    return tmp_path


def batches_of(root, *, rank: int = 0, world: int = 1, start: int = 0, **options) -> list:
    data = PictureData(root=str(root), size=32, val_split="train", **options)
    data.trainer = SimpleNamespace(
        max_steps=12, accumulate_grad_batches=1, global_rank=rank, world_size=world
    )
    loader = data.train_dataloader()
    loader.load_state_dict({"position": start})
    return list(loader)


def rows(batches) -> list[tuple]:
    """What is in the batches, sample by sample."""
    return [
        (position, index, text, image.numpy().tobytes())
        for batch in batches
        for position, index, text, image in zip(
            batch["position"].tolist(),
            batch["index"].tolist(),
            batch["captions"],
            batch["image"],
            strict=True,
        )
    ]


BUCKETS = Buckets(size=32, multiple=8)


@pytest.mark.parametrize("buckets", [None, BUCKETS])
@pytest.mark.parametrize("workers", [0, 2])
def test_crops_and_flips_depend_on_neither_workers_nor_ranks_nor_a_resume(photographs, buckets, workers):
    options = {"crop": random_resized, "flip": True, "buckets": buckets, "seed": 3}
    whole = rows(batches_of(photographs, batch_size=4, **options))
    ranks = [
        rows(batches_of(photographs, batch_size=2, rank=r, world=2, num_workers=workers, **options))
        for r in range(2)
    ]
    assert sorted(ranks[0] + ranks[1]) == whole
    resumed = batches_of(photographs, batch_size=4, start=20, num_workers=workers, **options)
    assert rows(resumed) == whole[20:]


def test_buckets_make_batches_of_one_shape(photographs):
    made = batches_of(photographs, batch_size=2, buckets=BUCKETS)
    shapes = [tuple(batch["image"].shape[2:]) for batch in made]
    assert set(shapes) == {(32, 32), (24, 40), (40, 24)}
    data = PictureData(root=str(photographs), size=32, batch_size=2, buckets=BUCKETS, val_split="train")
    assert {tuple(batch["image"].shape[2:]) for batch in data.val_dataloader()} == {(32, 32)}


def test_flips_mirror_half_of_the_pictures_whose_caption_allows_it(photographs):
    straight, mirrored = (rows(batches_of(photographs, batch_size=12, flip=flip)) for flip in (False, True))
    changed = [before != after for before, after in zip(straight, mirrored, strict=True)]
    sided = ["left" in text for _, _, text, _ in straight]
    assert not any(change for change, names in zip(changed, sided, strict=True) if names)
    free = [change for change, names in zip(changed, sided, strict=True) if not names]
    assert abs(sum(free) - len(free) / 2) < 5 * (len(free) / 4) ** 0.5  # five standard errors
    for (*_, before), (*_, after) in zip(straight, mirrored, strict=True):
        images = (np.frombuffer(each, np.uint8).reshape(3, 32, 32) for each in (before, after))
        assert before == after or np.array_equal(next(images), next(images)[:, :, ::-1])
