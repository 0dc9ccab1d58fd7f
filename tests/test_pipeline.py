"""Facts about drawing pictures from prompts and seeds."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.pipeline import open_pipeline, with_scale
from ldm.config import CONF, build
from ldm.pipeline import SEED_LIMIT, SeededNoise

PROMPTS, SEEDS = ["red apple", "a cat with a hat", "", "🍎"], [0, 1, 7, SEED_LIMIT - 1]


@pytest.fixture(scope="module")
def pipeline(bundle_path):
    return open_pipeline(Bundle.open(bundle_path))


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
    assert torch.equal(open_pipeline(Bundle.open(bundle_path))(PROMPTS, SEEDS), first)


@pytest.mark.parametrize("name", ["dpmpp_2m", "ddpm", "ddim", "heun"])
def test_a_picture_does_not_depend_on_its_batch(pipeline, name):
    drawn = pipeline.with_options(sampling=sampler(name, steps=4))
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


@pytest.mark.parametrize("seed", [-1, SEED_LIMIT, 2**80])
def test_a_seed_out_of_range_is_refused(pipeline, seed):
    with pytest.raises(ValueError, match=f"seed {seed} is out of range"):
        pipeline(["a"], [seed])


def test_prompts_and_seeds_must_be_as_many(pipeline):
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        pipeline(["a", "b"], [0])


def test_guidance_of_scale_1_is_the_conditional_network_alone(pipeline):
    def guided(name: str, **changes):
        node = OmegaConf.to_container(OmegaConf.load(CONF / "guidance" / f"{name}.yaml"))
        return pipeline.with_options(guidance=build(node | changes)).latents(["red apple"], [0])

    assert_close(guided("cfg", scale=1.0), guided("none"), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(guided("cfg", scale=6.0), guided("none"), atol=1e-3)


def test_the_negative_prompt_is_what_guidance_leaves(pipeline):
    plain = pipeline.latents(["red apple"], [0])
    assert not torch.equal(pipeline.with_options(negative="a cat").latents(["red apple"], [0]), plain)
    conditional = pipeline.with_options(guidance=lambda cond, uncond: cond).latents(["red apple"], [0])
    same = pipeline.with_options(negative="red apple").latents(["red apple"], [0])
    assert_close(same, conditional, rtol=1e-4, atol=1e-4)


def test_bfloat16_draws_nearly_the_same(pipeline):
    exact = pipeline.latents(["red apple"], [0])
    rounded = replace(pipeline, precision=torch.bfloat16).latents(["red apple"], [0])
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_steps_and_scale_of_a_bundle_can_be_changed(bundle_path):
    bundle = Bundle.open(bundle_path)
    assert open_pipeline(bundle, steps=9).sampling.steps == 9
    assert open_pipeline(bundle, scale=2.5).guidance.keywords["scale"] == 2.5
    with pytest.raises(ValueError, match=r"float8.* is unknown: write float32 or bfloat16"):
        open_pipeline(bundle, precision="float8")


def test_a_scale_reaches_a_guidance_inside_another():
    inner = {"_target_": "ldm.diffusion.guidance.cfg", "scale": 3.0}
    outer = {"_target_": "ldm.diffusion.guidance.interval", "within": inner, "low": 0.2}
    assert with_scale(outer, 5.0) == outer | {"within": inner | {"scale": 5.0}}
    with pytest.raises(ValueError, match="has no scale to set to 5"):
        with_scale({"_target_": "ldm.diffusion.guidance.conditional"}, 5.0)
