"""Facts about drawing pictures from prompts and seeds."""

import hashlib
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.config import CONF, build
from ldm.diffusion import grids
from ldm.evaluation.protocol import describe
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.generators.generator import Source, open_generator
from ldm.generators.latent_diffusion import node_of, with_scale
from ldm.randomness.noise import Mt19937Noise, SeededNoise
from ldm.randomness.seeds import SEED_LIMIT

PROMPTS, SEEDS = ["red apple", "a cat with a hat", "", "🍎"], [0, 1, 7, SEED_LIMIT - 1]


@pytest.fixture(scope="module")
def pipeline(bundle_path):
    return open_latent_diffusion(Bundle.open(bundle_path))


def sampler(name: str, **changes):
    return build(OmegaConf.to_container(OmegaConf.load(CONF / "sampler" / f"{name}.yaml")) | changes)


def test_pictures_are_uint8_and_as_many_as_prompts(pipeline):
    images = pipeline(PROMPTS, SEEDS)
    assert images.shape == (4, 3, 16, 16)
    assert images.dtype == torch.uint8


def test_the_same_seeds_draw_the_same_pictures_to_the_bit(pipeline, bundle_path):
    first = pipeline(PROMPTS, SEEDS)
    torch.rand(11)
    assert torch.equal(pipeline(PROMPTS, SEEDS), first)
    assert torch.equal(open_latent_diffusion(Bundle.open(bundle_path))(PROMPTS, SEEDS), first)


@pytest.mark.parametrize("name", ["dpmpp_2m", "ddpm", "ddim", "heun"])
def test_a_picture_does_not_depend_on_its_batch(pipeline, name):
    drawn = replace(pipeline, sampling=sampler(name, steps=4))
    together = drawn.latents(PROMPTS, SEEDS)
    for number, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = drawn.latents([prompt], [seed])
        # matrix products of another shape add up in another order: equal but for float32's rounding
        assert_close(alone, together[number : number + 1], rtol=1e-4, atol=1e-4)
        difference = drawn.codec.decode(alone).int() - drawn.codec.decode(together)[number].int()
        assert difference.abs().max() <= 1


def test_the_order_of_a_batch_changes_no_picture(pipeline):
    images = pipeline(PROMPTS, SEEDS)
    turned = pipeline(PROMPTS[::-1], SEEDS[::-1]).flip(0)
    assert (turned.int() - images.int()).abs().max() <= 1


def test_seed_and_prompt_each_change_a_picture(pipeline):
    latents = pipeline.latents(["red apple", "red apple", "a cat"], [0, 1, 0])
    assert not torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])


def test_noise_continues_each_pictures_own_stream():
    both = SeededNoise([3, 4], (2, 2, 2), device=torch.device("cpu"))
    one = SeededNoise([4], (2, 2, 2), device=torch.device("cpu"))
    like = torch.zeros(1, dtype=torch.float64)
    for _ in range(3):
        assert torch.equal(both(like)[1:], one(like))
    assert one(like).dtype == torch.float64


@pytest.mark.parametrize("seed", [-1, SEED_LIMIT, 2**80, True])
def test_a_seed_out_of_range_is_refused(pipeline, seed):
    with pytest.raises(ValueError, match=rf"seed={seed!r} must lie between 0 and 2\*\*63 - 1"):
        pipeline(["a"], [seed])


@pytest.mark.parametrize(("seed", "other"), [(1, 2**32 + 1), (0, 2**32), (2**53, 2**53 + 1), (5, 2**62 + 5)])
def test_seeds_that_differ_anywhere_in_63_bits_have_pictures_of_their_own(pipeline, seed, other):
    first, second = pipeline.latents(["a", "a"], [seed, other])
    assert (first - second).abs().mean() > 0.1


def test_the_earlier_noise_is_that_of_torchs_generators(pipeline):
    noise = Mt19937Noise([3, 4], (2, 2, 2), device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    for _ in range(2):
        assert torch.equal(noise.generate()[1], torch.randn(2, 2, 2, generator=generator))
    earlier = replace(pipeline, noise=Mt19937Noise)
    assert not torch.equal(earlier.latents(["a"], [3]), pipeline.latents(["a"], [3]))


def test_prompts_and_seeds_must_be_as_many(pipeline):
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        pipeline(["a", "b"], [0])


def test_guidance_of_scale_1_is_the_conditional_network_alone(pipeline):
    def guided(name: str, **changes):
        node = OmegaConf.to_container(OmegaConf.load(CONF / "guidance" / f"{name}.yaml"))
        return replace(pipeline, guidance=build(node | changes)).latents(["red apple"], [0])

    assert_close(guided("cfg", scale=1.0), guided("none"), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(guided("cfg", scale=6.0), guided("none"), atol=1e-3)


def test_the_negative_prompt_is_what_guidance_leaves(pipeline):
    plain = pipeline.latents(["red apple"], [0])
    assert not torch.equal(replace(pipeline, negative="a cat").latents(["red apple"], [0]), plain)
    conditional = replace(pipeline, guidance=lambda cond, uncond: cond).latents(["red apple"], [0])
    same = replace(pipeline, negative="red apple").latents(["red apple"], [0])
    assert_close(same, conditional, rtol=1e-4, atol=1e-4)


def test_bfloat16_draws_nearly_the_same(pipeline):
    exact = pipeline.latents(["red apple"], [0])
    rounded = replace(pipeline, precision=torch.bfloat16).latents(["red apple"], [0])
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_steps_and_scale_of_a_bundle_can_be_changed(bundle_path):
    bundle = Bundle.open(bundle_path)
    assert open_latent_diffusion(bundle, steps=9).sampling.steps == 9
    assert open_latent_diffusion(bundle, scale=2.5).guidance.keywords["scale"] == 2.5
    with pytest.raises(ValueError, match=r"float8.* is unknown: write float32 or bfloat16"):
        open_latent_diffusion(bundle, precision="float8")


def test_a_grid_takes_the_place_of_a_samplers_own(bundle_path):
    karras = OmegaConf.to_container(OmegaConf.load(CONF / "grid" / "karras.yaml"))
    drawn = open_latent_diffusion(Bundle.open(bundle_path), grid=karras, steps=5)
    schedule = drawn.process.schedule
    assert torch.equal(drawn.sampling.times(schedule), grids.karras(5, schedule=schedule))
    assert drawn.sampling.method is open_latent_diffusion(Bundle.open(bundle_path)).sampling.method


def test_a_scale_reaches_a_guidance_inside_another():
    inner = {"_target_": "ldm.diffusion.guidance.cfg", "scale": 3.0}
    outer = {"_target_": "ldm.diffusion.guidance.interval", "within": inner, "low": 0.2}
    assert with_scale(outer, 5.0) == outer | {"within": inner | {"scale": 5.0}}
    with pytest.raises(ValueError, match="has no scale to set to 5"):
        with_scale({"_target_": "ldm.diffusion.guidance.conditional"}, 5.0)


def pictures(count, side=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def left_half(count):
    redrawn = torch.zeros(count, 1, 16, 16, dtype=torch.bool)
    redrawn[..., :7] = True  # 4 pixels are one latent: the edge is inside one
    return redrawn


STEPPED = ["ddim", "ddpm", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "pndm", "lcm"]


@pytest.mark.parametrize("name", STEPPED)
def test_at_strength_0_a_picture_takes_the_autoencoders_round_trip_alone(pipeline, name):
    drawn = replace(pipeline, sampling=sampler(name, steps=4))
    images = pictures(4)
    codec = pipeline.codec
    expected = codec.decode(codec.encode_images(images).mean)
    assert torch.equal(drawn(PROMPTS, SEEDS, source=Source(images=images, strength=0.0)), expected)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "dpmpp_2m"])
def test_at_strength_1_of_a_flow_nothing_of_a_picture_is_left(pipeline, name):
    drawn = replace(pipeline, sampling=sampler(name, steps=2))  # on a grid that begins at t = 1
    source = Source(images=pictures(2), strength=1.0)
    assert torch.equal(drawn(PROMPTS[:2], SEEDS[:2], source=source), drawn(PROMPTS[:2], SEEDS[:2]))


def test_the_stronger_the_farther_from_the_picture(pipeline):
    images = pictures(2)
    start = pipeline.codec.encode_images(images).mean
    drawn = replace(pipeline, sampling=sampler("ddim", steps=5))
    distances = [
        (
            drawn.latents(PROMPTS[:2], SEEDS[:2], source=Source(images=images, strength=strength)) - start
        ).norm()
        for strength in (0.0, 0.2, 0.6, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] == 0


@pytest.mark.parametrize("name", STEPPED)
def test_pixels_that_are_not_redrawn_stay_to_the_byte_and_the_others_change(pipeline, name):
    drawn, images, redrawn = replace(pipeline, sampling=sampler(name, steps=3)), pictures(2), left_half(2)
    result = drawn(PROMPTS[:2], SEEDS[:2], source=Source(images=images, redrawn=redrawn))
    kept = ~redrawn.expand_as(images)
    assert torch.equal(result[kept], images[kept])
    assert (result != images)[~kept].double().mean() > 0.5


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_mask_that_leaves_nothing_is_no_mask(pipeline, strength):
    images, everything = pictures(2), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    masked = Source(images=images, strength=strength, redrawn=everything)
    free = Source(images=images, strength=strength)
    drawn = [pipeline(PROMPTS[:2], SEEDS[:2], source=source) for source in (masked, free)]
    assert torch.equal(*drawn)


def test_a_latent_of_which_one_pixel_is_redrawn_is_redrawn(pipeline):
    redrawn = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    redrawn[0, 0, 5, 9] = True
    images = pictures(1)
    known = pipeline.codec.encode_images(images).mean
    latents = pipeline.latents(["a"], [0], source=Source(images=images, redrawn=redrawn))
    changed = (latents - known).abs().amax(dim=1)[0] > 1e-4
    assert changed.nonzero().tolist() == [[1, 2]]


def test_a_picture_to_start_from_must_have_the_pipelines_size(pipeline):
    with pytest.raises(ValueError, match=r"shape \(1, 3, 20, 20\), not \(1, 3, 16, 16\)"):
        pipeline(["a"], [0], source=Source(images=pictures(1, side=20)))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 16, 16\), not \(1, 3, 16, 16\)"):
        pipeline(["a"], [0], source=Source(images=pictures(2)))
    with pytest.raises(ValueError, match=r"strength=1\.5 is outside"):
        pipeline(["a"], [0], source=Source(images=pictures(1), strength=1.5))


def test_a_weak_network_that_is_the_network_itself_changes_nothing_at_any_scale(pipeline):
    alone = replace(pipeline, guidance=lambda cond, uncond: cond).latents(PROMPTS, SEEDS)
    guided = replace(pipeline, weak=pipeline.net).latents(PROMPTS, SEEDS)
    assert_close(guided, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(pipeline.latents(PROMPTS, SEEDS), alone, atol=1e-3)


def test_a_weak_network_is_given_the_prompt_in_the_unconditional_ones_place(pipeline, build_network, specs):
    weak = build_network(specs["backbone"], 9).eval()
    guided = replace(pipeline, weak=weak).latents(PROMPTS, SEEDS)
    context = pipeline.codec.encode_prompts(PROMPTS)
    strong, other = (pipeline.process.denoiser(net, context) for net in (pipeline.net, weak))

    def by_hand(x, t):
        return other(x, t) + 3 * (strong(x, t) - other(x, t))

    noise = SeededNoise(SEEDS, (4, 4, 4), device=torch.device("cpu"))
    with torch.no_grad():
        expected = pipeline.sampling(by_hand, pipeline.process.schedule, noise.generate(), noise=noise)
    assert_close(guided, expected, rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_has_no_place_beside_a_weak_network(pipeline):
    with pytest.raises(ValueError, match="negative='a hat' has no place beside a weak network"):
        replace(pipeline, weak=pipeline.net, negative="a hat")


PICTURES = {  # sha256 of the pictures that the code before `ldm.generators` made of the same bundles
    "sampled": "b30370d949c8b767fc926fe681d5cb948966c22ede820bbb1244af43457f5d79",
    "projected": "0595f9c564f78604c8c589aa0fe1a9bbe73cd57167a85aa7233e5892a5a84746",
    "rounded": "efa57cb031c424d72ba02b42f63ae014a068dbb4dba87cf640a889a0eb2235d5",
    "shipped": "61c057308d9c9357c66baac39aef242d36072d23599fab6b08bd7aa450b60304",
}
APG = {"_target_": "ldm.diffusion.guidance.apg", "_partial_": True, "scale": 3.0}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sampled", {}),
        ("projected", {"guidance": APG, "scale": 2.5}),
        ("rounded", {"precision": "bfloat16"}),
        ("shipped", {"steps": 3, "scale": 2.0}),
    ],
)
def test_bundles_generate_the_bytes_that_they_always_did(bundle_path, name, options):
    bundle = Bundle.open("shipped" if name == "shipped" else bundle_path)
    prompts, seeds = ["red apple", "a cat with a hat", "🍎"], [0, 7, SEED_LIMIT - 1]
    images = open_generator(bundle, **options).generator(prompts, seeds)
    assert hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest() == PICTURES[name]


def test_settings_given_again_make_an_equal_generator_and_say_what_was_changed(bundle_path):
    opened = open_generator(Bundle.open(bundle_path), steps=3, generator="mt19937")
    changed = opened.with_options(scale=1.5, negative="fog")
    settings = changed.generator.settings()
    assert (settings["guidance"]["scale"], settings["negative"]) == (1.5, "fog")
    again = open_generator(opened.bundle, **settings).generator
    assert again.settings() == settings
    assert torch.equal(again(PROMPTS, SEEDS), changed.generator(PROMPTS, SEEDS))
    assert "negative" not in opened.generator.settings()


@pytest.mark.parametrize("group", ["sampler", "guidance"])
def test_every_node_of_conf_is_read_off_what_it_builds(group):
    for path in sorted((CONF / group).glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(path))
        node.pop("weak", None)
        assert describe(node_of(build(node))) == describe(node), path


def test_an_option_that_there_is_not_is_refused_with_the_nearest_one(pipeline, bundle_path):
    with pytest.raises(ValueError, match=r"has no option 'negatif', did you mean 'negative'\?"):
        pipeline.with_options(negatif="fog")
    with pytest.raises(ValueError, match=r"the generator of .* has no option 'step', did you mean 'steps'\?"):
        open_generator(Bundle.open(bundle_path), step=3)


@pytest.mark.parametrize("name", ["sampler", "guidance"])
def test_an_option_of_another_kind_is_refused_by_an_open_generator_too(pipeline, name):
    flow = {"_target_": "ldm.diffusion.predictions.Flow"}
    with pytest.raises(UserError, match=rf"{name}: '{flow['_target_']}' is no {name}: take one of conf"):
        pipeline.with_options(**{name: flow})


def test_weights_in_the_dtype_of_autocast_sample_what_autocast_samples(bundle_path):
    held = open_latent_diffusion(Bundle.open(bundle_path), precision="bfloat16")
    whole = replace(open_latent_diffusion(Bundle.open(bundle_path)), precision=torch.bfloat16)
    assert held.net.conv_in.weight.dtype == torch.bfloat16
    assert held.net.norm_out.weight.dtype == whole.net.conv_in.weight.dtype == torch.float32
    assert torch.equal(held.latents(["a cat"], [1]), whole.latents(["a cat"], [1]))
