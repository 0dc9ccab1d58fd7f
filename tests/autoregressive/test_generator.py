"""Facts about the generators of DALL-E, CogView and CLIP-GEN."""

import pytest
import torch

from ldm import UserError
from ldm.codec import to_float
from ldm.generators.autoregressive import CodeGenerator, candidate_seed
from ldm.generators.generator import Generator, Source
from ldm.generators.token_loop import Choice, generate_codes
from tests.autoregressive.tiny import BACKBONES
from tests.fixtures import SIZE, network

PROMPTS = ["a cat", "a red hat", "a cat"]
SEEDS = [1, 2, 3]


def test_a_picture_does_not_depend_on_its_batch_to_the_byte(make_generator, system):
    one = make_generator(system, scale=1.5, candidates=2)
    assert isinstance(one, Generator)
    together = one(PROMPTS, SEEDS)
    assert together.shape == (3, 3, SIZE, SIZE)
    assert together.dtype == torch.uint8
    for i in range(3):
        assert torch.equal(one(PROMPTS[i : i + 1], SEEDS[i : i + 1]), together[i : i + 1])
    assert torch.equal(one(PROMPTS[::-1], SEEDS[::-1]), together.flip(0))


def test_one_candidate_is_as_none_and_the_best_of_several_is_kept(make_generator, system):
    one = make_generator(system)
    plain = one(PROMPTS, SEEDS)
    rerank = "caption" if system == "cogview" else "clip"
    assert torch.equal(one.with_options(candidates=1, rerank=rerank)(PROMPTS, SEEDS), plain)
    several = [one(PROMPTS, [candidate_seed(seed, number) for seed in SEEDS]) for number in range(4)]
    assert torch.equal(several[0], plain)
    made = torch.stack(several, dim=1)  # 3 prompts, 4 candidates
    texts = one.clip.embed_texts(PROMPTS)
    seen = one.clip.embed_images(made.flatten(0, 1)).view(3, 4, -1)
    best = (seen * texts[:, None]).sum(-1).argmax(1)
    assert len(set(best.tolist())) > 1  # not always the first
    found = one.with_options(candidates=4, rerank="clip")(PROMPTS, SEEDS)
    assert torch.equal(found, made[torch.arange(3), best])


def test_the_caption_ranks_by_its_own_likelihood(make_generator):
    one = make_generator("cogview", candidates=3, rerank="caption")
    made = one(["a cat"], [7])
    net, tokens = one.net, one.clip.tokenizer.encode(["a cat"])
    seeds = [candidate_seed(7, number) for number in range(3)]
    single = one.with_options(candidates=1)
    pictures = single(["a cat"] * 3, seeds)
    codes = generate_codes(net, tokens.expand(3, -1), seeds, Choice())
    nats = net.caption_nats(tokens.expand(3, -1), codes)
    best = (nats.text * nats.counted).sum(1).argmin()
    assert torch.equal(made[0], pictures[best])


def test_guidance_by_nothing_is_the_empty_caption_or_no_vector(make_generator, system):
    one = make_generator(system, scale=2.0)
    empty = one.empty(2)
    if system == "clipgen":
        assert torch.equal(empty, torch.zeros(2, 8))
    else:
        assert torch.equal(empty, one.clip.tokenizer.encode(["", ""]))
    assert torch.equal(one.with_options(negative="a hat").empty(1), one.conditions(["a hat"]))
    assert not torch.equal(one(PROMPTS, SEEDS), one.with_options(scale=1.0)(PROMPTS, SEEDS))


def test_the_first_rows_of_a_source_are_kept_and_without_noise_it_all(make_generator, pictures, system):
    one, images = make_generator(system), pictures.train.images(range(3))
    codes = one.codes.encode_images(images)
    assert torch.equal(
        one(PROMPTS, SEEDS, source=Source(images=images, strength=0.0)), one.reconstruct(images)
    )
    assert torch.equal(one(PROMPTS, SEEDS, source=Source(images=images)), one(PROMPTS, SEEDS))
    known, kept = one._known(Source(images=images, strength=0.5), count=3)
    assert torch.equal(known, codes)
    assert kept.view(3, 4, 4)[:, :2].all()
    assert not kept.view(3, 4, 4)[:, 2:].any()


def test_what_a_mask_does_not_touch_stays_to_the_byte(make_generator, pictures):
    one, images = make_generator("dalle", candidates=2), pictures.train.images(range(3))
    redrawn = torch.zeros(3, 1, SIZE, SIZE, dtype=torch.bool)
    redrawn[..., 5:7, 9:] = True  # of the second row of codes, the two right ones
    source = Source(images=images, redrawn=redrawn)
    _, kept = one._known(source, count=3)
    assert (~kept).view(6, 4, 4).nonzero()[:2].tolist() == [[0, 1, 2], [0, 1, 3]]
    made = one(PROMPTS, SEEDS, source=source)
    assert torch.equal(made[~redrawn.expand_as(made)], images[~redrawn.expand_as(made)])


def test_settings_make_an_equal_generator(make_generator, system):
    one = make_generator(system, temperature=0.8, top_k=9, top_p=0.9, scale=1.2, candidates=2)
    one = one.with_options(negative="fog")
    again = make_generator(system).with_options(**one.settings())
    assert again.settings() == one.settings()
    assert torch.equal(one(PROMPTS, SEEDS), again(PROMPTS, SEEDS))
    assert one.nfe == 16 * 2 * 2
    assert make_generator(system).nfe == 16


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"candidates": 0}, "candidates=0 must lie in 1 to 512"),
        ({"candidates": 513}, "candidates=513 must lie in 1 to 512"),
        ({"candidates": 2.5}, "candidates='2.5': it must be int"),
        ({"rerank": "best"}, "rerank=best is unknown: write clip or caption"),
        ({"rerank": "caption"}, "rerank=caption needs CogView's network"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_k": "many"}, "top_k='many': it must be int"),
        ({"sampler": {}}, "has no option 'sampler', did you mean 'scale'"),
        ({"steps": 3}, "has no option 'steps'"),
    ],
)
def test_options_that_it_can_not_have_are_refused(make_generator, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make_generator("dalle").with_options(**options)


@pytest.mark.parametrize(
    ("system", "change", "sentence"),
    [
        ("dalle", {"grid": 3}, r"backbone\.grid=3, but the tokenizer of pictures has 4"),
        ("dalle", {"num_codes": 9}, r"backbone\.num_codes=9, but the tokenizer of pictures has 16"),
        ("dalle", {"text_length": 9}, r"backbone\.text_length=9: set it to 16"),
        ("cogview", {"vocab_size": 99}, r"backbone\.vocab_size=99: set it to 640"),
        ("clipgen", {"prefix_dim": 3}, r"backbone\.prefix_dim=3, but the features of CLIP have 8 numbers"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(codes, clip, system, change, sentence):
    with pytest.raises(UserError, match=sentence):
        CodeGenerator(net=network(BACKBONES[system] | change, 3), codes=codes, clip=clip)


def test_seeds_and_sources_of_another_number_are_refused(make_generator, pictures):
    one = make_generator("dalle")
    with pytest.raises(UserError, match="2 prompts and 1 seeds"):
        one(["a", "b"], [1])
    with pytest.raises(UserError, match="pictures to start from have shape"):
        one(["a", "b"], [1, 2], source=Source(images=pictures.train.images(range(3))))


def test_who_watches_sees_steps_and_previews_and_changes_no_picture(make_generator):
    one, seen = make_generator("dalle", candidates=3), []
    made = one(PROMPTS, SEEDS, watch=lambda progress: seen.append((progress.step, progress.steps)))
    assert torch.equal(made, one(PROMPTS, SEEDS))
    assert seen == [(step, 32) for step in range(1, 33)]  # 9 candidates are two chunks
    previews = []
    one(PROMPTS, SEEDS, watch=lambda progress: previews.append(progress.preview().shape))
    assert set(previews) == {(3, 3, SIZE, SIZE)}


def test_features_do_not_depend_on_their_batch_and_have_length_one(clip, pictures):
    images = pictures.train.images(range(11))
    features = clip.embed_images(images)
    assert torch.equal(clip.embed_images(images[4:5]), features[4:5])
    assert torch.allclose(features.norm(dim=1), torch.ones(11))
    texts = clip.embed_texts(PROMPTS)
    assert torch.equal(clip.embed_texts(PROMPTS[1:2]), texts[1:2])
    larger = torch.nn.functional.interpolate(to_float(images), scale_factor=2, mode="nearest")
    assert (clip.features(larger) * features).sum(1).min() > 0.9  # resized to the encoder's size
