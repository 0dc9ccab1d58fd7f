"""Facts about the batches of pictures that a trainer gets."""

import pytest
import torch

from ldm.data.datamodule import PictureData


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
        assert ours["text"] == theirs["text"]


def test_captions_are_the_pictures_own_and_change_over_epochs(emoji, batches):
    data = PictureData(root=str(emoji), size=16, batch_size=4)
    chosen = {}
    for batch in batches():
        for number, text in zip(batch["index"].tolist(), batch["text"], strict=True):
            assert text in data.train[number]["texts"]
            chosen.setdefault(number, set()).add(text)
    assert any(len(texts) > 1 for texts in chosen.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_is_the_same_every_time(emoji, seed):
    data = PictureData(root=str(emoji), size=16, batch_size=3, seed=seed)
    first, second = (list(data.val_dataloader()) for _ in range(2))
    assert [batch["text"] for batch in first] == [batch["text"] for batch in second]
    assert torch.cat([batch["index"] for batch in first]).tolist() == [0, 1, 2, 3]
