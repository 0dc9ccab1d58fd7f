"""Facts about the stage of tokenizers of pictures, and what it leaves: bundles, cached codes."""

import pytest
import torch
from torch.testing import assert_close

from benchmarks.chaos.equality import compared, differences
from benchmarks.chaos.resumes import AtBatch, EndedError
from ldm import UserError
from ldm.callbacks.ema import EMA
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.training_state import newest_state
from ldm.data.augment import shifts
from ldm.data.datamodule import PictureData
from ldm.generators.code_bundle import open_codes
from ldm.models.losses import PatchDiscriminator
from ldm.planning.checks import check_start, check_target
from ldm.stages.image_tokenizer import CodeUsage, TokenizerStage

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


@pytest.fixture
def make_stage(build_network, image_tokenizer, adamw):
    """`make_stage(quantizer=..., **options)`: always with the same first weights."""

    def make(quantizer=None, **options) -> TokenizerStage:
        spec = image_tokenizer | ({} if quantizer is None else {"quantizer": quantizer})
        defaults = {"optimizer": adamw, "decay": lambda step: 1.0, "seed": 2, "augment": shifts}
        return TokenizerStage(net=build_network(spec, 11), **(defaults | options))

    return make


GUMBEL = {
    "_target_": "ldm.models.quantizers.GumbelQuantizer",
    "channels": 8,
    "num_codes": 16,
    "dim": 8,
    "temperature": {
        "_target_": "ldm.models.quantizers.cosine",
        "_partial_": True,
        "start": 1.0,
        "end": 0.1,
        "steps": 9,
    },
    "divergence_weight": {
        "_target_": "ldm.models.quantizers.cosine",
        "_partial_": True,
        "start": 0.0,
        "end": 0.1,
        "steps": 9,
    },
}
LEARNED = {
    "_target_": "ldm.models.quantizers.VectorQuantizer",
    "num_codes": 16,
    "dim": 8,
    "learned": True,
    "encoder_weight": 1.0,
    "codebook_weight": 0.2,
    "normalised": True,
}


def test_shards_and_a_target_are_refused_before_the_training(make_stage, pictures):
    config = {"trainer": {"strategy": {"_target_": "ldm.distributed.sharding.Sharded"}}, "compile": False}
    with pytest.raises(UserError, match="and TokenizerStage trains another network: take trainer=ddp"):
        check_start(make_stage(), config)
    with pytest.raises(UserError, match=r"\(val/loss_fixed\), and TokenizerStage has none"):
        check_target({"target": 1.0, "trainer": {}}, make_stage(), pictures)


def patches() -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(channels=4, layers=1)


@pytest.mark.parametrize(
    ("quantizer", "end", "adversarial", "accumulated"),
    [
        pytest.param(None, 3, False, 1, id="averages"),
        pytest.param(None, 5, False, 2, id="inside an accumulation"),
        pytest.param(GUMBEL, 4, False, 1, id="gumbel"),
        pytest.param(LEARNED, 3, True, 1, id="learned and adversarial"),
    ],
)
def test_a_stopped_training_resumes_to_the_bit(
    make_stage, pictures, make_trainer, tmp_path, quantizer, end, adversarial, accumulated
):
    def train(name, *callbacks):
        folder = tmp_path / name
        saved = [EMA(decay=0.9), Gradients(clip=1.0), SaveStates(folder=folder, every=2)]
        adversary = {"discriminator": patches(), "discriminator_start": 2} if adversarial else {}
        trainer = make_trainer(5, *saved, *callbacks, accumulate_grad_batches=accumulated)
        path = newest_state(folder)
        stage = make_stage(quantizer, **adversary)
        trainer.fit(stage, datamodule=pictures, ckpt_path=path, weights_only=True)
        return torch.load(newest_state(folder), weights_only=True)

    whole = train("whole")
    with pytest.raises(EndedError):
        train("stopped", AtBatch(end))
    assert differences(compared(whole), compared(train("stopped"))) == []


@pytest.fixture
def batch(pictures, make_trainer):
    pictures.trainer = make_trainer(3)
    return next(iter(pictures.train_dataloader()))


def test_a_step_is_a_function_of_positions_and_seed(make_stage, batch):
    for quantizer in (None, GUMBEL):
        first = make_stage(quantizer).training_step(batch, 0)
        torch.rand(5)
        assert torch.equal(make_stage(quantizer).training_step(batch, 7), first)
    assert not torch.equal(make_stage(GUMBEL, seed=5).training_step(batch, 0), first)


def test_accumulated_batches_give_the_codebook_of_the_whole_batch(make_stage, copy_emoji, make_trainer):
    def codebook(batch_size: int, accumulated: int) -> torch.Tensor:
        pictures = PictureData(root=str(root), size=16, batch_size=batch_size, seed=3)
        stage = make_stage()
        make_trainer(2, precision="32-true", accumulate_grad_batches=accumulated).fit(
            stage, datamodule=pictures
        )
        return stage.net.quantizer.codebook

    root = copy_emoji()
    assert_close(codebook(4, 2), codebook(8, 1), rtol=1e-4, atol=1e-5)  # sums in another order


def test_the_bundle_has_the_codebook_and_the_averaged_weights(
    make_stage, pictures, make_trainer, image_tokenizer, tmp_path
):
    stage = make_stage()
    trainer = make_trainer(3, EMA(decay=0.9), limit_val_batches=1, val_check_interval=3)
    trainer.fit(stage, datamodule=pictures)
    config = {"image_tokenizer": image_tokenizer, "name": "codes"}
    bundle = Bundle.open(stage.write_bundle(tmp_path / "bundle", config=config, data=pictures))
    codes = open_codes(bundle)
    assert torch.equal(codes.net.quantizer.codebook, stage.net.quantizer.codebook)
    assert torch.equal(codes.net.from_codes.weight, stage.averaged.from_codes.weight)
    assert not torch.equal(codes.net.from_codes.weight, stage.net.from_codes.weight)
    assert "codes.image_tokenizer=<this folder>" in (tmp_path / "bundle" / "README.md").read_text()
    logged = trainer.callback_metrics
    assert 1 <= logged["val/codes_used"] <= 16
    assert 0 <= logged["val/codes_entropy"] <= 4
    assert logged["val/psnr"] > 0


def test_a_tokenizer_with_one_code_says_so(make_stage, pictures, make_trainer):
    stage = make_stage()
    with torch.no_grad():
        for parameter in stage.net.encoder.parameters():
            parameter.zero_()  # as where every unit of an encoder is dead
    with pytest.warns(UserWarning, match=r"have one code\. .* smaller optimizer\.lr"):
        make_trainer(1, limit_val_batches=1).validate(stage, datamodule=pictures)


def test_usage_counts_codes_and_their_entropy():
    usage = CodeUsage(num_codes=8)
    usage.update(torch.tensor([[0, 1], [1, 0]]))
    usage.update(torch.tensor([[5, 5, 6, 6]]))
    assert {name: float(value) for name, value in usage.compute().items()} == {"used": 4.0, "entropy": 2.0}
