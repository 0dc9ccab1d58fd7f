"""Facts about pipelines of diffusers: the same pictures there and here, with every scheduler."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from ldm.checkpoints.bundle import SHIPPED, Bundle
from tests.exchange.both import FILES, export, largest_difference, latents_apart
from tests.exchange.stable_diffusion import STABLE_DIFFUSION


def test_both_draw_the_same_pictures(imported, saved, tmp_path):
    out = export(imported, tmp_path / "out")
    assert largest_difference(imported, saved, out) <= 1  # a value halfway between two levels may round apart
    assert largest_difference(imported, saved, guidance=5.0) > 1


def test_so_they_do_with_v_and_a_second_order_solver_and_linear_projections(
    save_pipeline, bundle_of, tmp_path
):
    solver = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="linear", prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1
    )
    unet = {"use_linear_projection": True, "attention_head_dim": [4, 8]}
    folder = save_pipeline(tmp_path, unet=unet, scheduler=solver)
    bundle = bundle_of(folder)
    assert Bundle.open(bundle).entry("sampler")["method"]["_target_"] == "ldm.diffusion.samplers.dpmpp_2m"
    assert largest_difference(bundle, folder) <= 1
    out = export(bundle, tmp_path / "out")
    theirs, back = (load_file(each / f"{FILES[0]}.safetensors") for each in (folder, out))
    assert theirs.keys() == back.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("kind", "options", "method"),
    [
        ("DDPMScheduler", {}, "ddpm"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpmpp_3m"),
        ("UniPCMultistepScheduler", {}, "unipc"),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "euler"),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}, "euler_ancestral"),
        ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, "edm"),
    ],
)
def test_so_they_do_with_every_class_that_is_written(
    save_pipeline, bundle_of, tmp_path, kind, options, method
):
    table = {key: STABLE_DIFFUSION["scheduler"][key] for key in ("beta_schedule", "beta_start", "beta_end")}
    spacing = {"timestep_spacing": "trailing", "steps_offset": 1}
    scheduler = getattr(diffusers, kind)(**(table | spacing | options))
    folder = save_pipeline(tmp_path, scheduler=scheduler)
    bundle = bundle_of(folder)
    assert Bundle.open(bundle).entry("sampler")["method"]["_target_"] == f"ldm.diffusion.samplers.{method}"
    out = export(bundle, tmp_path / "out")
    assert json.loads((out / "model_index.json").read_text())["scheduler"] == ["diffusers", kind]
    assert latents_apart(bundle, folder, out) < 1e-4


@pytest.mark.parametrize(
    ("kind", "offset"), [("PNDMScheduler", 1), ("PNDMScheduler", 0), ("DDIMScheduler", 1)]
)
def test_so_they_do_with_stable_diffusions_own_scheduler(save_pipeline, bundle_of, tmp_path, kind, offset):
    """It stops at the table's first entry; a pipeline of diffusers takes every offset for 1."""
    published = {key: value for key, value in STABLE_DIFFUSION["scheduler"].items() if key != "clip_sample"}
    own = getattr(diffusers, kind).from_config(published | {"_class_name": kind, "steps_offset": offset})
    folder = save_pipeline(tmp_path, scheduler=own)
    bundle = bundle_of(folder)
    grid = Bundle.open(bundle).entry("sampler")["grid"]
    assert grid["clean"] is False
    out = export(bundle, tmp_path / "out")
    assert latents_apart(bundle, folder, out) < 1e-4
    assert latents_apart(bundle, folder, grid=grid | {"clean": True}) > 1e-3
    written = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    for key in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "set_alpha_to_one"):
        assert written[key] == published[key]
    assert (written["_class_name"], written["steps_offset"]) == (kind, 1)


@pytest.mark.parametrize(
    ("order", "method"), [(1, "ldm.diffusion.samplers.ddim"), (2, "ldm.diffusion.samplers.dpmpp_2m")]
)
def test_so_they_do_with_a_flow_and_a_pooled_context(save_pipeline, bundle_of, tmp_path, order, method):
    flow = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=order
    )
    unet = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    folder = save_pipeline(tmp_path, unet=unet, scheduler=flow)
    bundle = bundle_of(folder)
    assert Bundle.open(bundle).entry("sampler")["method"]["_target_"] == method
    assert Bundle.open(bundle).entry("sampler")["grid"]["shift"] == 3.0
    out = export(bundle, tmp_path / "out")
    assert largest_difference(bundle, folder, out) <= 1
    theirs, back = (load_file(each / f"{FILES[0]}.safetensors") for each in (folder, out))
    assert theirs.keys() == back.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_the_shipped_bundle_draws_the_same_pictures_in_diffusers(tmp_path):
    assert largest_difference(SHIPPED, export(SHIPPED, tmp_path / "out")) <= 1
