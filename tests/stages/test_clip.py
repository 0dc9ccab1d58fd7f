"""Facts about the contrastive stage."""

import math
from functools import partial

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader

from ldm.checkpoints.bundle import Bundle
from ldm.data.augment import shifts
from ldm.models.clip import CLIP, TextTransformer, VisionTransformer
from ldm.stages.clip import ContrastiveStage
from ldm.stages.optim import warmup_constant
from ldm.tokenizers import train
from tests.fixtures import FirstStepChecked

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
TEXTS = [f"a {first} patch above a {second} one" for first in COLOURS for second in COLOURS]
TEXT_SPEC = {
    "_target_": "ldm.models.clip.TextTransformer",
    "vocab_size": 600,
    "context_length": 16,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "embed_dim": 16,
}
IMAGE_SPEC = {
    "_target_": "ldm.models.clip.VisionTransformer",
    "image_size": 16,
    "patch_size": 8,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "embed_dim": 16,
}


class Patches(LightningDataModule):
    """Sixteen two-coloured pictures, as a batch or as validation."""

    def __init__(self, steps: int):
        super().__init__()
        halves = torch.tensor([[first, second] for first in COLOURS.values() for second in COLOURS.values()])
        images = halves.permute(0, 2, 1).repeat_interleave(8, dim=2)[..., None].expand(16, 3, 16, 16)
        number = torch.arange(16)
        self.batches = [
            {
                "image": images.to(torch.uint8),
                "captions": TEXTS,
                "position": number + 16 * step,
                "index": number,
            }
            for step in range(steps)
        ]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.batches[:1], batch_size=None)


def stage(**options) -> ContrastiveStage:
    torch.manual_seed(0)
    text = {key: value for key, value in TEXT_SPEC.items() if key != "_target_"}
    image = {key: value for key, value in IMAGE_SPEC.items() if key != "_target_"}
    return ContrastiveStage(
        net=CLIP(text=TextTransformer(**text), image=VisionTransformer(**image)),
        tokenizer=train(TEXTS, vocab_size=600, context_length=16),
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        decay=partial(warmup_constant, warmup=5),
        **options,
    )


def fitted(made: ContrastiveStage, steps: int) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[FirstStepChecked()],
    )
    trainer.fit(made, datamodule=Patches(steps))
    return trainer


@pytest.fixture(scope="module")
def trained() -> tuple[ContrastiveStage, Trainer]:
    made = stage()
    return made, fitted(made, 100)


def test_every_caption_finds_its_picture_after_training(trained):
    metrics = trained[1].callback_metrics
    assert metrics["val/loss"] < 0.5 < math.log(16)
    for name in ("r1_image_to_text", "r5_image_to_text", "r1_text_to_image", "r5_text_to_image"):
        assert metrics[f"val/{name}"] > 0.9
    assert {"train/loss", "train/logit_scale"} <= set(metrics)


def test_before_training_retrieval_is_chance():
    made = stage()
    trainer = fitted(made, 1)
    assert trainer.callback_metrics["val/r1_text_to_image"] < 0.3


def test_training_again_gives_the_same_weights_to_the_bit():
    first, second = (stage(augment=shifts, seed=3) for _ in range(2))
    fitted(first, 4)
    torch.rand(7)  # the global generator is not asked
    fitted(second, 4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_another_seed_moves_the_pictures_otherwise():
    first, second = stage(augment=shifts, seed=3), stage(augment=shifts, seed=4)
    fitted(first, 4)
    fitted(second, 4)
    assert not torch.equal(first.net.image.patches.weight, second.net.image.patches.weight)


def test_the_temperature_has_no_weight_decay():
    made = stage()
    optimizer = made.configure_optimizers()["optimizer"]
    without = [group["params"] for group in optimizer.param_groups if group["weight_decay"] == 0]
    assert any(parameter is made.net.logit_scale for parameter in without[0])


def test_what_is_saved_is_what_was_trained():
    assert {key.split(".")[0] for key in stage().state_dict()} == {"net"}


def test_a_tokenizer_of_another_size_is_refused():
    made = stage()
    other = train(TEXTS, vocab_size=700, context_length=16)
    with pytest.raises(ValueError, match=r"\(700, 16\)"):
        ContrastiveStage(net=made.net, tokenizer=other, optimizer=made.optimizer, decay=made.decay)


def test_the_bundle_holds_both_encoders_and_the_tokenizer(trained, tmp_path):
    made = trained[0]
    config = {"name": "patches", "text_encoder": TEXT_SPEC, "image_encoder": IMAGE_SPEC}
    bundle = Bundle.open(made.write_bundle(tmp_path / "bundle", config=config, data=None))
    assert bundle.names == ["image_encoder", "text_encoder"]
    tokens = bundle.tokenizer().encode(TEXTS)
    assert torch.equal(tokens, made.tokenizer.encode(TEXTS))
    with torch.no_grad():
        ours, theirs = made.net.text(tokens), bundle.network("text_encoder")(tokens)
        assert_close(theirs.states, ours.states, atol=2e-2, rtol=2e-2)  # stored in half precision
        pictures = torch.rand(2, 3, 16, 16) * 2 - 1
        assert_close(
            bundle.network("image_encoder")(pictures), made.net.image(pictures), atol=2e-2, rtol=2e-2
        )
