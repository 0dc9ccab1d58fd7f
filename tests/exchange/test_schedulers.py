"""Facts about schedulers' configs: diffusers' classes have our noise tables from them, and they come back."""

import diffusers
import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

from ldm.config import CONF
from ldm.construct import construct
from ldm.exchange.schedulers import (
    BETAS,
    differences,
    process_spec,
    sampling_spec,
    scheduler_config,
)
from ldm.io.fields import Fields


def option(group: str, name: str):
    return OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=True)


@pytest.mark.parametrize("name", ["ddpm", "sd15", "cosine", "zero_snr"])
def test_their_table_is_ours(name):
    process = option("process", name)
    config = scheduler_config(process, option("sampler", "ddim"))
    theirs = diffusers.DDIMScheduler.from_config(config)
    ours = construct(process).schedule.alpha_bar[1:]
    assert_close(theirs.alphas_cumprod.double(), ours, atol=2e-6, rtol=0)  # theirs is a product in float32


@pytest.mark.parametrize("name", ["ddpm", "sd15", "zero_snr"])
def test_a_process_comes_back(name):
    process = option("process", name)
    fields = Fields(name, scheduler_config(process, option("sampler", "ddim")))
    assert process_spec(fields) == process


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m"])
def test_they_visit_the_times_that_we_visit(name):
    sampler = option("sampler", name)
    config = scheduler_config(option("process", "sd15"), sampler)
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    theirs.set_timesteps(20)
    ours = construct(sampler["grid"])(20)[:-1] * 1000 - 1
    assert theirs.timesteps.tolist() == ours.round().tolist()


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"])
def test_stable_diffusions_leading_steps_are_read(kind):
    fields = Fields("", {"_class_name": kind, "steps_offset": 1})
    theirs = getattr(diffusers, kind)(steps_offset=1)
    theirs.set_timesteps(20)
    ours = construct(sampling_spec(fields)["grid"])(20)[:-1] * 1000 - 1
    assert sorted(set(theirs.timesteps.tolist()) - {theirs.timesteps[0].item()}) <= sorted(
        ours.round().tolist()
    )
    assert torch.equal(torch.tensor(sorted(ours.round().tolist())[0]), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("kind", "told", "end"),
    [
        ("PNDMScheduler", {}, 1),
        ("PNDMScheduler", {"set_alpha_to_one": True}, 0),
        ("DDIMScheduler", {}, 0),
        ("DDIMScheduler", {"set_alpha_to_one": False}, 1),
        ("DDPMScheduler", {"set_alpha_to_one": False}, 0),  # another class's field, left there
    ],
)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_last_time_is_the_entry_that_theirs_ends_at(kind, told, end, spacing):
    fields = Fields("", {"_class_name": kind, "timestep_spacing": spacing} | told)
    assert construct(sampling_spec(fields)["grid"])(20)[-1] == end / 1000


@pytest.mark.parametrize(
    ("process", "sampler", "sentence"),
    [
        ("zero_snr", "pndm", "sampler.method pndm can't be written .* with zero_terminal_snr, which a PNDM"),
        ("ddpm", "edm", "sampler.method.churn=.* can't be written for diffusers, only None"),
        ("ddpm", "euler", "sampler.grid karras can't be written for euler .* only leading: write"),
        ("edm", "ddim", "process.schedule ldm.diffusion.schedules.edm"),
        ("sd15", "heun", "sampler.method ldm.diffusion.samplers.heun"),
    ],
)
def test_what_has_no_field_is_refused_by_name(process, sampler, sentence):
    with pytest.raises(ValueError, match=sentence):
        scheduler_config(option("process", process), option("sampler", sampler))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"network_time": {"_target_": "ldm.diffusion.process.scaled", "_partial_": True}}, "network_time"),
        (
            {"schedule": {"_target_": "ldm.diffusion.schedules.cosine", "offset": 0.1, "num_steps": 1000}},
            "cosine",
        ),
        ({"prediction": {"_target_": "ldm.diffusion.predictions.Flow"}}, "process.prediction"),
    ],
)
def test_so_is_an_option_of_the_process(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        scheduler_config(option("process", "sd15") | change, option("sampler", "ddim"))


def test_so_is_an_option_of_the_sampler():
    sampler = option("sampler", "ddim")
    sampler["method"]["eta"] = 0.5
    with pytest.raises(ValueError, match=r"eta=0\.5"):
        scheduler_config(option("process", "sd15"), sampler)
    sampler = option("sampler", "ddpm")
    sampler["grid"]["clean"] = False
    with pytest.raises(ValueError, match=r"sampler\.grid\.clean=False is no field of a DDPMScheduler"):
        scheduler_config(option("process", "sd15"), sampler)
    sampler = option("sampler", "ddim")
    sampler["grid"]["shift"] = 3.0
    with pytest.raises(ValueError, match=r"sampler\.grid uniform"):
        scheduler_config(option("process", "sd15"), sampler)


@pytest.mark.parametrize("order", [1, 2])
def test_a_flow_whose_steps_are_ours_has_no_difference(order):
    flow = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "solver_order": order}
    assert differences(Fields("", flow)) == []
    assert differences(Fields("", flow | {"euler_at_final": True})) == [
        "euler_at_final=True of a DPMSolverMultistepScheduler"
    ]


def test_a_flow_of_an_order_that_ours_lacks_is_refused():
    with pytest.raises(ValueError, match="solver_order=3 must be a whole number from 1 to 2"):
        sampling_spec(Fields("", {"use_flow_sigmas": True, "solver_order": 3}))


def test_every_class_that_is_written_may_omit_its_betas():
    assert len(BETAS) == 8
    for kind in BETAS:
        theirs = getattr(diffusers, kind)()
        ours = construct(process_spec(Fields("", {"_class_name": kind}))).schedule.alpha_bar[1:]
        assert_close(theirs.alphas_cumprod.double(), ours, atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match="a LMSDiscreteScheduler without betas matches none of our"):
        process_spec(Fields("", {"_class_name": "LMSDiscreteScheduler"}))
