"""Facts about the grids of sampling times."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch.testing import assert_close

from ldm import UserError
from ldm.diffusion import grids
from ldm.diffusion.schedules import noise_ratio, rectified_flow, scaled_linear

GRIDS = {
    "uniform": grids.uniform,
    "shifted": lambda steps: grids.uniform(steps, shift=3.0),
    "trailing": grids.trailing,
    "leading": grids.leading,
    "karras": lambda steps: grids.karras(steps, schedule=rectified_flow),
    "karras_table": lambda steps: grids.karras(steps, schedule=scaled_linear()),
    "exponential": lambda steps: grids.exponential(steps, schedule=rectified_flow),
    "exponential_table": lambda steps: grids.exponential(steps, schedule=scaled_linear()),
    "log_snr": lambda steps: grids.log_snr(steps, schedule=rectified_flow),
    "log_snr_table": lambda steps: grids.log_snr(steps, schedule=scaled_linear(), first=1.0),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 300])
def test_a_grid_falls_to_zero_in_the_asked_number_of_steps(name, steps):
    times = GRIDS[name](steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] <= 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()


@pytest.mark.parametrize(
    "name", ["uniform", "shifted", "trailing", "karras_table", "exponential_table", "log_snr_table"]
)
def test_a_grid_starts_in_pure_noise(name):
    assert GRIDS[name](30)[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("leading", 0), ("leading", 1)])
@pytest.mark.parametrize("steps", [7, 20, 50, 300])
def test_table_spacings_are_those_of_diffusers(spacing, offset, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    times = grids.trailing(steps) if spacing == "trailing" else grids.leading(steps, offset=offset)
    np.testing.assert_allclose(1000 * times[:-1].numpy() - 1, scheduler.timesteps.numpy(), atol=1e-9)


def test_karras_levels_follow_the_power_law():
    ratio = noise_ratio(rectified_flow, grids.karras(18, schedule=rectified_flow)[:-1])
    roots = ratio ** (1 / 7)
    assert_close(roots.diff(), roots.diff()[:1].expand(17), atol=1e-6, rtol=0)
    assert ratio[0].item() == pytest.approx(80)
    assert ratio[-1].item() == pytest.approx(0.002)


@pytest.mark.parametrize("kind", ["karras", "exponential", "lu"])
def test_noise_levels_are_those_of_diffusers(kind):
    option = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "lu": "use_lu_lambdas"}
    table = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = DPMSolverMultistepScheduler(**table, **{option[kind]: True})
    scheduler.set_timesteps(17)
    schedule = scaled_linear()
    lowest, highest = scheduler.sigmas[-2].item(), scheduler.sigmas[0].item()
    if kind == "lu":
        times = grids.log_snr(17, schedule=schedule, first=1.0, last=0.001)
    else:
        grid = {"karras": grids.karras, "exponential": grids.exponential}[kind]
        times = grid(17, schedule=schedule, sigma_min=lowest, sigma_max=highest)
    # their table is a float32 product of 1000 factors
    np.testing.assert_allclose(noise_ratio(schedule, times), scheduler.sigmas, rtol=2e-5)


def test_log_snr_falls_in_even_steps_on_any_schedule():
    for schedule in (rectified_flow, scaled_linear()):
        ratios = noise_ratio(schedule, grids.log_snr(9, schedule=schedule, first=0.9, last=0.1)[:-1])
        assert_close(ratios.log().diff(), ratios.log().diff()[:1].expand(8), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("first", "last", "sentence"), [(0.1, 0.9, "must hold"), (0.9, 0.0, "must hold"), (1.0, 0.1, "below 1")]
)
def test_log_snr_between_impossible_times_is_refused(first, last, sentence):
    with pytest.raises(ValueError, match=sentence):
        grids.log_snr(5, schedule=rectified_flow, first=first, last=last)


@pytest.mark.parametrize(
    ("grid", "options", "sentence"),
    [
        (grids.karras, {"rho": 0.0}, "rho=0.0: it must be at least 0.1"),
        (grids.karras, {"rho": 1e-6}, "rho=1e-06"),
        (grids.karras, {"rho": float("nan")}, "rho=nan"),
        (grids.karras, {"sigma_min": -1.0}, "sigma_min=-1.0"),
        (grids.karras, {"sigma_max": -1.0}, "must hold"),
        (grids.karras, {"sigma_min": 90.0}, "sigma_min=90.0 to 80"),
        (grids.exponential, {"sigma_min": 0.0}, "sigma_min=0.0"),
        (grids.exponential, {"sigma_max": 0.0}, "must hold"),
        (grids.uniform, {"shift": 0.0}, "shift=0.0: it must be above 0"),
        (grids.uniform, {"shift": -1.0}, "shift=-1.0"),
    ],
)
def test_levels_and_shifts_that_make_no_grid_are_refused(grid, options, sentence):
    with pytest.raises(UserError, match=sentence):
        grid(5, schedule=rectified_flow, **options)


@pytest.mark.parametrize("grid", [grids.uniform, grids.trailing, grids.leading])
def test_no_steps_are_refused(grid):
    with pytest.raises(ValueError, match="steps=0 sampling steps"):
        grid(0)


@pytest.mark.parametrize("grid", [grids.trailing, grids.leading])
def test_a_grid_that_is_not_clean_ends_at_the_first_entry_of_its_table(grid):
    whole, stopped = grid(20), grid(20, clean=False)
    assert torch.equal(stopped[:-1], whole[:-1])
    assert (whole[-1], stopped[-1]) == (0, 1 / 1000)


@pytest.mark.parametrize("grid", [grids.trailing, grids.leading])
def test_more_steps_than_the_table_has_are_refused(grid):
    with pytest.raises(ValueError, match=r"steps=1001 .* between 1 and 1000"):
        grid(1001)


def test_an_offset_past_the_table_is_refused():
    with pytest.raises(ValueError, match="offset=1 "):
        grids.leading(1000, offset=1)
