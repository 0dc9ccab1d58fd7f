"""Facts about the stage of DALL-E, CogView and CLIP-GEN."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from benchmarks.chaos.equality import compared, differences
from benchmarks.chaos.resumes import AtBatch, EndedError
from ldm import UserError
from ldm.callbacks.ema import EMA
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.training_state import newest_state
from ldm.models.autoregressive import DalleTransformer
from ldm.models.code_transformer import Nats
from ldm.planning.checks import check_start
from ldm.stages.autoregressive import KeyedDropout, apart, embedding_error, together

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


@pytest.fixture
def batch(pictures, codes, clip):
    """Four pictures with their codes, captions and features."""
    images = pictures.train.images(range(4))
    return {
        "codes": codes.encode_images(images),
        "captions": [own[0] for own in pictures.train.texts()[:4]],
        "embedding": clip.embed_images(images),
        "position": torch.arange(8, 12),
        "index": torch.arange(4),
    }


class Poison(list):
    """Captions that can't be read."""

    def __iter__(self):
        raise AssertionError("a caption was read")

    __getitem__ = __len__ = __iter__


def nats(text, image, counted=None):
    return Nats(image=image, text=text, counted=counted)


def test_dalles_loss_is_an_eighth_of_text_and_seven_eighths_of_codes():
    equal = nats(torch.full((2, 15), math.log(656)), torch.full((2, 16), math.log(16)))
    assert_close(apart(equal, text=0.125), torch.full((2,), (math.log(656) + 7 * math.log(16)) / 8))
    assert_close(apart(Nats(image=equal.image), text=0.125), torch.full((2,), math.log(16)))


def test_cogviews_loss_is_the_weighted_mean_over_all_tokens():
    text, image = torch.rand(3, 5), torch.rand(3, 16)
    counted = torch.arange(5) < torch.tensor([2, 5, 3])[:, None]
    for weight in (1.0, 5.0):
        for row, loss in enumerate(together(nats(text, image, counted), text_weight=weight)):
            own = text[row][counted[row]]
            expected = (weight * own.sum() + image[row].sum()) / (weight * len(own) + 16)
            assert_close(loss, expected)
    assert_close(together(nats(text, image)), torch.cat([text, image], dim=1).mean(dim=1))


def test_a_step_is_a_function_of_positions_and_seed(stage, batch, system):
    one = stage(system)
    first = one.training_step(batch, 0)
    torch.rand(5)
    assert torch.equal(one.training_step(batch, 9), first)
    if system != "dalle":  # whose only random choice is that of dropped captions
        moved = batch | {"position": batch["position"] + 4}
        assert not torch.equal(one.training_step(moved, 0), first)
        assert not torch.equal(stage(system, seed=4).training_step(batch, 0), first)


def test_a_sample_has_the_same_loss_in_any_batch(stage, batch, system):
    one = stage(system)
    alone = [one.training_step({key: value[i : i + 1] for key, value in batch.items()}, 0) for i in range(4)]
    assert_close(one.training_step(batch, 0), torch.stack(alone).mean(), rtol=1e-5, atol=1e-6)


def test_clip_gen_reads_no_caption_in_training(stage, batch):
    one = stage("clipgen")
    assert one.tokenizer is None
    losses = [one.training_step(batch | {"captions": each}, 0) for each in (batch["captions"], Poison())]
    assert torch.equal(*losses)
    with pytest.raises(AssertionError, match="a caption was read"):
        stage("dalle").training_step(batch | {"captions": Poison()}, 0)


def test_dropped_conditions_are_empty(stage, batch, system):
    one = stage(system, caption_drop=1.0, dropout=0.0, captioning=0.0, embedding_weight=0.0)
    empty = torch.zeros(4, 8) if system == "clipgen" else one.clip.tokenizer.encode([""] * 4)
    found = one._condition(batch, one._chosen(1.0, batch["position"], "drop"))
    assert torch.equal(found, empty)
    kept = one._condition(batch, torch.zeros(4, dtype=torch.bool))
    assert (kept != empty).any(dim=1).all()
    other = batch | {"captions": ["x"] * 4, "embedding": torch.randn(4, 8)}
    assert torch.equal(one.training_step(batch, 0), one.training_step(other, 0))


def test_the_stated_share_of_samples_is_turned_round(stage):
    turned = stage("cogview", captioning=0.3)._chosen(0.3, torch.arange(4000), "turn").double().mean()
    assert abs(turned - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_turned_samples_cost_their_captions_likelihood(stage, batch):
    one = stage("cogview", captioning=1.0, caption_drop=0.0, dropout=0.0)
    found = one.net.caption_nats(one.clip.tokenizer.encode(batch["captions"]), batch["codes"])
    expected = (found.text * found.counted).sum(1) / found.counted.sum(1)
    assert_close(one.training_step(batch, 0), expected.mean())


def test_turned_samples_keep_their_captions(stage, batch):
    one = stage("cogview", captioning=1.0, caption_drop=1.0, dropout=0.0)
    kept = stage("cogview", captioning=1.0, caption_drop=0.0, dropout=0.0)
    assert torch.equal(one.training_step(batch, 0), kept.training_step(batch, 0))


def test_dropout_keeps_the_mean_and_drops_its_share():
    drop = KeyedDropout(0.25, seed=1, positions=torch.arange(3))
    ones = torch.ones(3, 50, 40)
    values = drop(ones, "a")
    assert_close(values.unique(), torch.tensor([0.0, 4 / 3]))
    assert abs((values == 0).double().mean() - 0.25) < 4 * (0.25 * 0.75 / 6000) ** 0.5
    assert torch.equal(values, drop(ones, "a"))
    assert not torch.equal(values, drop(ones, "b"))
    assert torch.equal(KeyedDropout(0.25, seed=1, positions=torch.tensor([1]))(ones[:1], "a"), values[1:2])


def test_the_embedding_term_decodes_the_likeliest_codes_and_learns_by_the_softmax(codes, clip):
    logits = 3 * torch.randn(2, 16, 16)
    logits.requires_grad_()
    features = torch.randn(2, 8)
    loss = embedding_error(logits, features, codes, clip)
    hard = codes.net.decode(logits.argmax(-1))
    cosine = (clip.features(hard) * F.normalize(features, dim=1)).sum(1)
    assert_close(loss, 2 * (1 - cosine) / 8, rtol=1e-5, atol=1e-6)
    (found,) = torch.autograd.grad(loss.sum(), logits)
    shares = logits.detach().softmax(-1).requires_grad_()
    (quantizer,) = codes.net.quantizers()
    vectors = quantizer.vectors()
    values = (F.one_hot(logits.argmax(-1), 16).float() + shares - shares.detach()) @ vectors
    seen = clip.features(codes.net.render([values.mT.unflatten(2, (4, 4))]))
    (to_shares,) = torch.autograd.grad((seen - F.normalize(features, dim=1)).square().mean(1).sum(), shares)
    own = shares.detach()
    expected = own * (to_shares - (own * to_shares).sum(-1, keepdim=True))  # through the softmax
    assert found.abs().max() > 0
    assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_features_of_the_data_are_clips_of_the_pictures(code_data, clip, codes, pictures):
    data = code_data("clipgen")
    data.setup("fit")
    found, images = [data.train[number] for number in range(20)], pictures.train.images()
    rows = {
        name: torch.stack([torch.from_numpy(each[name]) for each in found]) for name in ("codes", "embedding")
    }
    assert torch.equal(rows["codes"], codes.encode_images(images))
    assert_close(rows["embedding"], clip.embed_images(images), rtol=0, atol=1e-3)  # stored in half precision
    plain = code_data("dalle")
    plain.setup("fit")
    assert "embedding" not in plain.train[0]


@pytest.mark.parametrize(
    ("system", "options", "sentence"),
    [
        ("dalle", {"caption_drop": 1.5}, r"caption_drop=1.5 must lie in \[0, 1\]"),
        ("dalle", {"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ("dalle", {"captioning": 0.1}, "captioning=0.1 needs CogView's network"),
        ("cogview", {"embedding_weight": 0.1}, "embedding_weight=0.1 needs CLIP-GEN's network"),
        ("clipgen", {"candidates": 0}, "candidates=0 must lie in 1 to 512"),
        ("dalle", {"rerank": "caption"}, "rerank=caption needs CogView's network"),
    ],
)
def test_options_that_a_system_can_not_have_are_refused(stage, system, options, sentence):
    with pytest.raises(UserError, match=sentence):
        stage(system, **options)


def test_dropout_is_not_compiled(stage):
    check_start(stage("dalle"), {"trainer": {}, "compile": True})
    with pytest.raises(UserError, match=r"compile=true: the keys of model\.stage\.dropout=0\.1"):
        check_start(stage("cogview"), {"trainer": {}, "compile": True})


def test_a_network_for_other_codes_is_refused(stage):
    net = DalleTransformer(
        vocab_size=640, text_length=16, num_codes=9, grid=4, width=16, depth=1, num_heads=2
    )
    with pytest.raises(UserError, match=r"backbone\.num_codes=9, but the tokenizer of pictures has 16"):
        stage("dalle", net=net)


def test_the_frozen_parts_are_in_no_state_and_in_no_optimizer(stage, system):
    one = stage(system)
    assert all(name.startswith("net.") for name in one.state_dict())
    assert set(one.frozen()) == {"image tokenizer", "text encoder", "image encoder"}
    assert all(isinstance(each, nn.Module) for each in one.frozen().values())
    assert one.training_step(one.example_batch(3, size=16), 0).isfinite()


@pytest.fixture
def train(make_trainer, tmp_path, code_data, stage):
    """`train(system, name, *callbacks)`: a training of six steps from its newest state, if it has one."""

    def run(system, name, *callbacks):
        folder = tmp_path / name
        own = [EMA(decay=0.9), Gradients(clip=1.0), SaveStates(folder=folder, every=1)]
        trainer = make_trainer(6, *own, *callbacks, val_check_interval=3, limit_val_batches=1)
        data = code_data(system)
        trainer.fit(stage(system), datamodule=data, ckpt_path=newest_state(folder), weights_only=True)
        return torch.load(newest_state(folder), weights_only=True)

    return run


def test_a_training_stopped_at_any_step_resumes_exactly(train, system):
    whole = train(system, "whole")
    for batch in (1, 4):
        with pytest.raises(EndedError):
            train(system, "stopped", AtBatch(batch))
    assert differences(compared(whole), compared(train(system, "stopped"))) == []
    assert whole["global_step"] == 6


def test_validation_reports_nats_by_kind_whatever_the_seed(stage, code_data, make_trainer, system):
    trainer = make_trainer(1, limit_val_batches=1.0)
    data = code_data(system)
    data.setup("fit")
    (found,) = trainer.validate(stage(system), datamodule=data, verbose=False)
    assert found.pop("val/loss_fixed") == pytest.approx(found["val/image"], rel=1e-6)
    data.pictures.seed, data.pictures.batch_size = 9, 3
    data.setup("fit")
    (other,) = trainer.validate(stage(system, seed=9), datamodule=data, verbose=False)
    assert other["val/loss_fixed"] == pytest.approx(found["val/image"], rel=1e-6)
    expected = {
        "dalle": {"val/loss", "val/image", "val/text"},
        "cogview": {"val/loss", "val/image", "val/text", "val/caption"},
        "clipgen": {"val/loss", "val/image", "val/image_from_text"},
    }
    assert set(found) == expected[system]
    assert found["val/image"] == pytest.approx(math.log(16 if system != "cogview" else 658), rel=0.1)
