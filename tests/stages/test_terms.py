"""Facts about the terms that a training adds to its denoising loss."""

import sys
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ldm import UserError
from ldm.callbacks.ema import EMA
from ldm.checkpoints.bundle import Bundle
from ldm.config import check
from ldm.construct import construct
from ldm.data.datamodule import PictureData
from ldm.data.features import FeaturedLatents
from ldm.data.stored import SAMPLE
from ldm.data.streaming import EncodedPictures
from ldm.diffusion.process import Noised
from ldm.metrics.feature_maps import FeatureMaps
from ldm.stages.terms import (
    ContrastiveFlow,
    EarlyPrediction,
    FeatureAlignment,
    LatentAlignment,
    LayerSync,
    Seen,
    similarity,
)
from tests.fixtures import BACKBONE, DENOISER

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
DEEP = DENOISER | {"depth": 3}


@pytest.fixture(scope="module")
def maps() -> FeatureMaps:
    """Small features: 2x2 places of 40 channels."""
    return FeatureMaps(size=32, block=3)


@pytest.fixture
def stage(diffusion_stage):
    """`stage(**terms)`: the denoiser's stage with terms, its network of three blocks."""

    return lambda **terms: diffusion_stage(net=network(DEEP), terms=terms)


def network(spec):
    torch.manual_seed(5)
    return construct(spec)


def seen(hidden, **batch) -> Seen:
    one = torch.ones(1, 4, 4, 4)
    noised = Noised(x=one, time=torch.ones(1), target=one, weight=torch.ones(1, 1, 1, 1))
    return Seen(batch=batch, noised=noised, output=one, hidden=hidden)


def test_equal_maps_are_similar_by_1_and_opposite_ones_by_minus_1_on_the_coarser_grid():
    ours = torch.randn(2, 5, 4, 4)
    assert_close(similarity(ours, 3 * ours), torch.tensor(1.0))
    assert_close(similarity(ours, -ours), torch.tensor(-1.0))
    coarse = torch.nn.functional.avg_pool2d(ours, 2)
    assert_close(similarity(ours, coarse), torch.tensor(1.0))
    assert_close(similarity(coarse, ours), torch.tensor(1.0))


@pytest.mark.parametrize("spec", [DEEP, BACKBONE])
def test_the_later_layer_gets_no_gradient_of_layersync(spec):
    term = LayerSync(net=network(spec))
    early, late = (torch.randn(2, 32, 4, 4, requires_grad=True) for _ in range(2))
    value = term(seen(dict(zip(term.layers, (early, late), strict=True))))
    value.backward()
    assert_close(value, -torch.cosine_similarity(early, late, dim=1).mean())
    assert early.grad.abs().sum() > 0
    assert late.grad is None
    assert_close(term(seen(dict.fromkeys(term.layers, early))), torch.tensor(-1.0))


def test_latents_are_joined_to_the_places_of_the_state():
    term = LatentAlignment(net=network(BACKBONE), layer="middle")
    latents = torch.randn(2, 4, 4, 4)
    folded = term.target(seen({}, mean=latents))
    assert folded.shape == (2, 16, 2, 2)
    assert_close(folded[0, :4, 1, 0], latents[0, 0, 2:, :2].flatten())
    term.projector = torch.nn.Identity()
    assert_close(term(seen({"middle": folded}, mean=latents)), torch.tensor(-1.0))


def test_a_stage_without_weights_of_terms_trains_the_network_to_the_same_bits(
    stage, diffusion_stage, make_trainer, latents
):
    def trained(made):
        trainer = make_trainer(3, log_every_n_steps=1)
        trainer.fit(made, datamodule=latents)
        return made.net.state_dict(), trainer.callback_metrics

    plain, logged = trained(diffusion_stage(net=network(DEEP)))
    ways = {
        "none": stage(),
        "weight 0": stage(sync=partial(LayerSync, weight=0.0), sra=partial(LatentAlignment, weight=0.0)),
    }
    for made in ways.values():
        found, metrics = trained(made)
        assert all(torch.equal(found[name], plain[name]) for name in plain)
        assert metrics["train/loss"] == logged["train/loss"]
    assert -1 <= metrics["train/loss_sync"] <= 1
    assert -1 <= metrics["train/loss_sra"] <= 1


def test_terms_are_minimised_and_their_projectors_trained(stage, maps):
    sra, repa = LatentAlignment, partial(FeatureAlignment, features=maps)
    made = stage(sra=partial(sra, weight=1.0, inner=16), repa=partial(repa, weight=1.0, inner=16))
    made.on_fit_start()
    batch, optimizer = made.example_batch(2, size=16), made.configure_optimizers()["optimizer"]
    before, values = [p.detach().clone() for p in made.terms.parameters()], []
    for _ in range(12):
        optimizer.zero_grad()
        made.loss(batch).backward()
        optimizer.step()
        values.append(made.losses(batch))
    assert values[-1]["sra"] < values[0]["sra"] - 0.01
    assert values[-1]["repa"] < values[0]["repa"] - 0.01
    assert not any(map(torch.equal, made.terms.parameters(), before))


def test_projectors_are_in_the_checkpoint_but_not_in_the_average_nor_the_bundle(
    stage, make_trainer, latents, bundle_path, tmp_path
):
    made = stage(sra=partial(LatentAlignment, inner=16))
    make_trainer(1, EMA(decay=0.9)).fit(made, datamodule=latents)
    assert {name for name in made.state_dict() if not name.startswith("net.")} == {
        f"terms.sra.projector.{number}.{kind}" for number in (0, 2) for kind in ("weight", "bias")
    }
    assert made.averaged.state_dict().keys() == made.net.state_dict().keys()
    source = Bundle.open(bundle_path).config
    config = {"name": "tiny", "codec": {"autoencoder": str(bundle_path), "text_encoder": str(bundle_path)}}
    config |= {"backbone": DEEP} | {name: source[name] for name in ("process", "sampler", "guidance")}
    written = Bundle.open(made.write_bundle(tmp_path / "bundle", config=config, data=None))
    assert written.network("backbone").state_dict().keys() == made.net.state_dict().keys()


@pytest.mark.parametrize("flip", [False, True])
def test_stored_features_are_those_of_the_pictures_to_the_bit(
    copy_emoji, codec, make_trainer, stage, maps, flip
):
    pictures = PictureData(root=str(copy_emoji()), size=16, batch_size=6, seed=3, flip=flip)
    batches = []
    for kind in (FeaturedLatents, partial(EncodedPictures, exact=True)):
        data = kind(pictures=pictures, codec=codec, embedder=maps)
        data.trainer = make_trainer(1)
        data.trainer.strategy.connect(stage())
        data.setup("fit")
        batches.append(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))
    assert batches[0]["embedding"].shape == (6, 40, 4, 4)
    for name in ("embedding", "mean", "std", "context"):
        assert torch.equal(batches[0][name], batches[1][name])


def test_a_training_alone_reads_features_so_held_out_pictures_have_none(
    copy_emoji, codec, maps, stage, make_trainer
):
    pictures = PictureData(root=str(copy_emoji()), size=16, batch_size=6, seed=3)
    data = FeaturedLatents(pictures=pictures, codec=codec, embedder=maps)
    per_picture = data.recipes(pictures.train, mirrored=False)["embedding"].bytes_each
    assert data.missing_bytes()["embeddings"] == len(pictures.train) * (SAMPLE + per_picture)
    folder = data.pictures.train.cache / "embeddings"
    before = set(folder.glob("*"))  # of other tests' networks, where this worker ran them first
    data.setup("fit")
    assert not any(data.missing_bytes().values())
    assert [path.name.partition("-")[0] for path in set(folder.glob("*")) - before] == ["train"]
    assert data.train[0].keys() - data.val[0].keys() == {"embedding"}


def test_a_run_is_not_resumed_on_features_of_another_network(stage, maps, latents, make_trainer, tmp_path):
    """A user's own network may have other weights at the same path, which no option shows."""
    saved, made = {}, stage(repa=partial(FeatureAlignment, features=maps))
    made.on_save_checkpoint(saved)
    made.on_load_checkpoint(saved)
    made.on_load_checkpoint({})  # of an earlier version
    other = stage(repa=partial(FeatureAlignment, features=FeatureMaps(size=32, block=2)))
    with pytest.raises(UserError, match="has features of another network"):
        other.on_load_checkpoint(saved)
    assert "features" in made.frozen()
    assert made.frozen().keys() - stage().frozen().keys() == {"features"}


def test_features_do_not_depend_on_the_rest_of_the_batch_and_are_the_networks(maps):
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    found = maps.embed_images(images)
    assert torch.equal(maps.embed_images(images[2:]), found[2:])
    assert found.shape[1:] == torch.Size(maps.shape)
    whole = FeatureMaps(size=32)
    net = whole.extractor.net
    last = net._swish(net._bn1(net._conv_head(whole.embed_images(images))))
    assert_close(last.mean(dim=(2, 3)), whole.extractor.see(images), rtol=1e-4, atol=1e-5)
    assert maps.image_fingerprint() != whole.image_fingerprint()


@pytest.mark.parametrize("spec", [DEEP, DEEP | {"long_skips": True}, BACKBONE])
def test_hidden_states_change_no_output_and_are_those_of_a_recomputed_network(build_network, spec):
    net, context = build_network(spec, 2), torch.randn(2, 6, 16)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 800.0])
    plain = net(x, t, context)
    output, states = net(x, t, context, [*net.hidden])
    assert torch.equal(output, plain)
    for name, (channels, factor) in net.hidden.items():
        assert states[name].shape == (2, channels, 8 // factor, 8 // factor)
    net.checkpointing = True
    again = net(x, t, context, [*net.hidden])[1]
    assert list(again) == list(net.hidden)
    assert all(torch.equal(again[name], states[name]) for name in states)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            partial(LatentAlignment, layer="block9"),
            "no layer 'block9'; the backbone has block0, block1",
        ),
        (partial(LayerSync, early="middle"), "no early 'middle'; the backbone has block0"),
        (partial(LayerSync, early="block1", late="block1"), "name two different layers of equal width"),
    ],
)
def test_a_layer_that_does_not_exist_is_answered_with_those_that_do(stage, make, sentence):
    with pytest.raises(UserError, match=sentence):
        stage(term=make)


def test_layers_of_other_widths_are_refused_by_layersync():
    net = network(BACKBONE | {"multipliers": [1, 2]})
    with pytest.raises(UserError, match="early=down0 and late=middle have 32 and 64 channels"):
        LayerSync(net=net, early="down0", late="middle")


def test_a_network_without_hidden_states_is_refused():
    with pytest.raises(UserError, match="Identity returns no hidden states"):
        LayerSync(net=torch.nn.Identity())


def test_missing_features_are_answered_with_what_makes_them(stage, maps, monkeypatch, latents, make_trainer):
    made = stage(repa=partial(FeatureAlignment, features=maps))
    with pytest.raises(UserError, match=r"no features of pictures: write model\.datamodule\._target_=ldm"):
        make_trainer(1).fit(made, datamodule=latents)
    with pytest.raises(UserError, match="terms a and b each want features"):
        stage(a=partial(FeatureAlignment, features=maps), b=partial(FeatureAlignment, features=maps))
    with pytest.raises(UserError, match="block=16 must lie between 0 and 15"):
        FeatureMaps(size=32, block=16)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="pip install efficientnet_lite_pytorch"):
        FeatureMaps(size=32)


def test_the_contrastive_term_is_minus_the_error_to_the_next_samples_target(monkeypatch):
    targets, output = torch.randn(6, 4, 4, 4), torch.randn(6, 4, 4, 4)
    weight = torch.rand(6, 1, 1, 1)
    term = ContrastiveFlow(net=torch.nn.Identity())

    def value(rows, **options):
        time = torch.ones(len(output[rows]))
        noised = Noised(x=output[rows], time=time, target=targets[rows], weight=weight[rows])
        return term(Seen(batch={}, noised=noised, output=output[rows], hidden={}, **options))

    expected = -(weight * (output - targets.roll(-1, 0)) ** 2).mean()
    assert_close(value(slice(None)), expected)
    assert value(slice(1)) == 0  # there is no other sample
    for count in (2, 3):  # ranks that take turns
        gathered = torch.cat([targets[number::count] for number in range(count)])
        parts = []
        for number in range(count):
            monkeypatch.setattr("ldm.stages.terms.rank", lambda number=number: number)
            parts.append(value(slice(number, None, count), gather=lambda rows, own=gathered: own))
        assert_close(torch.stack(parts).mean(), expected)


def test_the_early_head_is_trained_by_its_own_denoising_loss(stage, diffusion_stage, build_network):
    spec = DEEP | {"early_head": 1}
    made = diffusion_stage(net=build_network(spec, 2), terms={"internal": EarlyPrediction})
    made.on_fit_start()
    batch = made.example_batch(2, size=16)
    noised, context = made.noised(batch)
    early = made.net(noised.x, noised.time, context, hidden=["early"])[1]["early"]
    losses = made.losses(batch)
    assert_close(losses["internal"], noised.error(early).mean())
    made.loss(batch).backward()
    assert made.net.early_out.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match=r"early_head=1 is trained by \+term=internal: add that"):
        made.net(noised.x, noised.time, context)
    with pytest.raises(UserError, match=r"no early head: take a DiT.*write backbone\.early_head=1,"):
        stage(internal=EarlyPrediction)


def test_terms_are_chosen_on_the_command_line_one_or_several():
    check("train", ["+term=repa", "model.stage.terms.repa.weight=0.1"])
    check(
        "train",
        ["+term=[repa,contrastive,layersync,sra2,internal]", "model.stage.terms.layersync.early=block1"],
    )
    with pytest.raises(UserError, match="no term 'layersink', did you mean 'layersync'"):
        check("train", ["+term=[repa,layersink]"])
    with pytest.raises(UserError, match=r"term has no place in ldm\.sample"):
        check("sample", ["+term=repa"])
