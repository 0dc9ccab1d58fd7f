"""Facts about the schedules: where they start and end, and what lies between the entries of a table."""

import copy
import pickle

import pytest
import torch
from diffusers import DDIMScheduler
from torch.testing import assert_close

from ldm import UserError
from ldm.diffusion import schedules

TABLES = {
    "linear": schedules.linear(),
    "scaled_linear": schedules.scaled_linear(),
    "cosine": schedules.cosine(),
    "zero_terminal_snr": schedules.zero_terminal_snr(schedules.scaled_linear()),
}
THEIRS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero_terminal_snr": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": True,
    },
}
tables = pytest.mark.parametrize("name", TABLES)


def grid(count, dtype=torch.float64):
    return torch.linspace(0, 1, count, dtype=dtype)


@tables
def test_a_table_preserves_variance(name):
    alpha, sigma = TABLES[name](grid(4321))
    assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-14, rtol=0)


@tables
def test_time_zero_is_clean(name):
    assert TABLES[name](torch.zeros((), dtype=torch.float64)) == (1, 0)


@tables
def test_signal_falls_and_noise_grows_between_entries_too(name):
    alpha, sigma = TABLES[name](grid(12_345))
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() >= 0).all()


@tables
def test_entry_i_of_a_table_sits_at_i_plus_one_over_t(name):
    alpha_bar = DDIMScheduler(**THEIRS[name]).alphas_cumprod.double()
    alpha, _ = TABLES[name]((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    assert_close(alpha**2, alpha_bar, atol=2e-7, rtol=2e-5)  # theirs is a float32 product of 1000 factors


@tables
def test_float32_times_give_float32_coefficients_of_the_same_value(name):
    ours = torch.stack(TABLES[name](grid(1001, torch.float32)))
    assert ours.dtype == torch.float32
    assert_close(ours.double(), torch.stack(TABLES[name](grid(1001))), atol=2e-6, rtol=0)


@pytest.mark.parametrize("table", [schedules.linear(), schedules.scaled_linear(), schedules.cosine()])
def test_zero_terminal_snr_ends_in_exactly_no_signal_and_keeps_its_first_entry(table):
    rescaled = schedules.zero_terminal_snr(table)
    for dtype in (torch.float32, torch.float64):
        alpha, sigma = rescaled(torch.ones((), dtype=dtype))
        assert alpha == 0
        assert sigma == 1
    assert_close(rescaled.alpha_bar[1], table.alpha_bar[1], atol=0, rtol=1e-15)


def test_the_last_interval_to_zero_signal_is_crossed_in_a_straight_line():
    table = TABLES["zero_terminal_snr"]
    alpha, _ = table(torch.tensor([0.999, 0.9995, 1.0], dtype=torch.float64))
    assert_close(alpha[1], alpha[0] / 2, atol=1e-12, rtol=0)


def test_tables_of_other_lengths_cover_the_same_time():
    assert schedules.linear(num_steps=7).num_steps == 7
    assert_close(
        schedules.cosine(num_steps=100)(grid(101))[0], schedules.cosine()(grid(101))[0], atol=3e-3, rtol=0
    )


def test_rectified_flow_is_a_straight_line():
    t = grid(11)
    alpha, sigma = schedules.rectified_flow(t)
    assert_close(alpha + sigma, torch.ones_like(t))
    assert_close(sigma, t)


@tables
def test_a_table_survives_pickle_and_deepcopy(name):
    table, t = TABLES[name], grid(17)
    for twin in (pickle.loads(pickle.dumps(table)), copy.deepcopy(table)):
        assert torch.equal(torch.stack(twin(t)), torch.stack(table(t)))


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.scaled_linear])
@pytest.mark.parametrize("options", [{"num_steps": -1}, {"beta_start": -1.0}, {"beta_end": float("nan")}])
def test_a_table_of_impossible_betas_is_refused(schedule, options):
    with pytest.raises(UserError, match=r"take at least 1, and betas in \[0, 1\)"):
        schedule(**options)
