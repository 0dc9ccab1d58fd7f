"""Facts about a process: what loss a network gets, what it is shown, and how its output is undone."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.diffusion.predictions import X0, Eps, Flow, V, min_snr
from ldm.diffusion.process import (
    Process,
    logit_normal_timesteps,
    per_sample,
    scaled,
    table_index,
    table_timesteps,
    uniform_timesteps,
)
from ldm.diffusion.schedules import cosine, rectified_flow, scaled_linear, zero_terminal_snr

PAIRS = [
    (scaled_linear(), Eps()),
    (cosine(), X0()),
    (zero_terminal_snr(scaled_linear()), V()),
    (rectified_flow, Flow()),
    (rectified_flow, V()),
    (cosine(), Flow()),
]
pairs = pytest.mark.parametrize(("schedule", "prediction"), PAIRS)


def draws(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch():
    uniform = torch.tensor([0.0, 0.2, 0.5, 0.9])
    return draws(4, 2, 3, 5), draws(4, 2, 3, 5, seed=1), uniform


class Oracle:
    """A network that knows the pictures, and is off by `error` in x0."""

    def __init__(self, process, x0, *, error=0.0):
        self.process, self.x0, self.error = process, x0, error

    def __call__(self, x, t, context):
        alpha, sigma = (per_sample(value, x) for value in self.process.schedule(context))
        eps = (x - alpha * self.x0) / sigma.clamp(min=1e-12)
        target = self.process.prediction.target(self.x0, eps, alpha, sigma)
        gain = self.process.prediction.gain(alpha, sigma)
        return target + self.error / gain


class Recorder(nn.Module):
    """A small real network that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(2, 2, 1)
        self.seen, self.projections = [], 0

    def forward(self, x, t, context):
        self.seen.append((x, t, context))
        return self.body(x)

    def project_context(self, context):
        self.projections += 1
        return context * 2


@pairs
def test_a_network_that_knows_the_picture_has_no_loss(schedule, prediction):
    process = Process(schedule=schedule, prediction=prediction)
    x0, noise, uniform = batch()
    uniform = uniform.clamp(min=0.05)
    loss = process.loss(Oracle(process, x0), x0, uniform, noise=noise, uniform=uniform)
    assert loss.shape == (4,)
    assert loss.dtype == torch.float32
    assert_close(loss, torch.zeros(4), atol=1e-9, rtol=0)


@pairs
def test_the_denoiser_undoes_the_prediction(schedule, prediction):
    process = Process(schedule=schedule, prediction=prediction)
    x0, eps = draws(4, 2, 3, 5), draws(4, 2, 3, 5, seed=1)
    for time in (0.1, 0.6, 0.95):
        t = torch.tensor(time, dtype=torch.float64)
        alpha, sigma = schedule(t)
        denoise = process.denoiser(Oracle(process, x0), torch.full((4,), time))
        assert_close(denoise(alpha * x0 + sigma * eps, t), x0, atol=1e-4, rtol=0)


def test_min_snr_gives_one_error_of_x0_the_same_loss_under_every_prediction():
    x0, noise, uniform = batch()
    uniform = uniform.clamp(min=0.05)
    for schedule in (cosine(), rectified_flow):
        losses = []
        for prediction in (Eps(), X0(), V(), Flow()):
            if schedule is rectified_flow and prediction == Eps():
                continue
            process = Process(schedule=schedule, prediction=prediction, weight=min_snr)
            net = Oracle(process, x0, error=0.1)
            losses.append(process.loss(net, x0, uniform, noise=noise, uniform=uniform))
        alpha, sigma = schedule(uniform)
        expected = (alpha / sigma).square().clamp(max=5) * 0.1**2
        for loss in losses:
            assert_close(loss, expected, atol=1e-7, rtol=1e-3)


def test_the_loss_of_a_sample_does_not_depend_on_its_batch():
    process = Process(schedule=rectified_flow, prediction=Flow())
    net, (x0, noise, uniform) = Recorder(), batch()
    together = process.loss(net, x0, None, noise=noise, uniform=uniform)
    alone = process.loss(net, x0[2:3], None, noise=noise[2:3], uniform=uniform[2:3])
    assert_close(together[2:3], alone)


def test_the_loss_is_finite_from_no_noise_to_pure_noise():
    x0, noise, _ = batch()
    uniform = torch.tensor([0.0, 1e-7, 0.999_999, 1.0])
    for schedule, prediction in PAIRS:
        for times in (uniform_timesteps, logit_normal_timesteps):
            process = Process(schedule=schedule, prediction=prediction, weight=min_snr, times=times)
            assert process.loss(Recorder(), x0, None, noise=noise, uniform=uniform).isfinite().all()


def test_eps_prediction_is_refused_where_the_schedule_ends_in_pure_noise():
    for schedule in (rectified_flow, zero_terminal_snr(cosine())):
        with pytest.raises(ValueError, match=r"Eps prediction .* alpha = 0, .* take V, X0 or Flow"):
            Process(schedule=schedule, prediction=Eps())


def test_a_network_for_a_table_sees_whole_numbers_from_0_to_999():
    process = Process(
        schedule=scaled_linear(), prediction=Eps(), network_time=table_index, times=table_timesteps
    )
    net, count = Recorder(), 1000
    x = torch.zeros(count, 2, 1, 1)
    process.loss(net, x, None, noise=x, uniform=(torch.arange(count) + 0.5) / count)
    assert torch.equal(net.seen[0][1], torch.arange(count, dtype=torch.float32))
    process.denoiser(net, torch.zeros(()))(x, torch.ones((), dtype=torch.float64))
    assert torch.equal(net.seen[1][1], torch.full((count,), 999.0))


def test_a_network_for_a_flow_sees_times_up_to_the_scale():
    assert_close(scaled(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.0, 500.0, 1000.0]))


def test_the_network_sees_float32_and_the_state_keeps_float64():
    process, net = Process(schedule=rectified_flow, prediction=Flow()), Recorder()
    x = draws(3, 2, 4, 4, dtype=torch.float64)
    x0 = process.denoiser(net, torch.zeros(()))(x, torch.tensor(0.5, dtype=torch.float64))
    seen, t, _ = net.seen[0]
    assert seen.dtype == t.dtype == torch.float32
    assert t.shape == (3,)
    assert x0.dtype == torch.float64


def test_the_context_is_projected_once_for_all_steps():
    process, net = Process(schedule=rectified_flow, prediction=Flow()), Recorder()
    denoise = process.denoiser(net, torch.ones(3, 5, 7))
    for t in (1.0, 0.5):
        denoise(torch.zeros(3, 2, 4, 4), torch.tensor(t, dtype=torch.float64))
    assert net.projections == 1
    assert all(torch.equal(context, torch.full((3, 5, 7), 2.0)) for _, _, context in net.seen)


def test_a_process_survives_pickle_and_deepcopy():
    process = Process(schedule=cosine(), prediction=V(), weight=partial(min_snr, gamma=3.0))
    x0, noise, uniform = batch()
    net = Recorder()
    loss = process.loss(net, x0, None, noise=noise, uniform=uniform)
    for twin in (pickle.loads(pickle.dumps(process)), copy.deepcopy(process)):
        assert torch.equal(twin.loss(net, x0, None, noise=noise, uniform=uniform), loss)


def test_densities_are_the_inverse_cdfs_of_their_names():
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = logit_normal_timesteps(uniform, mean=0.5, std=2.0).logit()
    assert_close(logits.mean().item(), 0.5, atol=0.03, rtol=0)
    assert_close(logits.std().item(), 2.0, atol=0.03, rtol=0)
    assert torch.equal(uniform_timesteps(uniform), uniform)
    entries = table_timesteps(uniform, num_steps=10)
    assert_close(entries.unique(), torch.arange(1, 11, dtype=torch.float64) / 10)


def test_a_shift_moves_times_towards_noise_and_keeps_the_ends():
    uniform = torch.tensor([0.0, 0.5, 1.0])
    assert_close(uniform_timesteps(uniform, shift=3.0), torch.tensor([0.0, 0.75, 1.0]))
    assert logit_normal_timesteps(torch.tensor([0.5]), shift=3.0).item() == pytest.approx(0.75)
