"""Gaussian data, of which the best denoiser is known in closed form."""

import math

import torch

MEAN, STD = 0.7, 0.4  # of the data


def quarter_circle(t):
    """A smooth variance-preserving path whose signal is exactly 0 at t = 1."""
    return torch.sin((1 - t) * math.pi / 2), torch.sin(t * math.pi / 2)


def spread(schedule, t):
    """Standard deviation of x_t."""
    alpha, sigma = schedule(t)
    return (alpha**2 * STD**2 + sigma**2).sqrt()


def best_denoiser(schedule):
    """E[x0 | x_t] for data N(MEAN, STD^2), every number by itself."""

    def denoise(x, t):
        alpha, _ = schedule(t)
        return MEAN + alpha * STD**2 / spread(schedule, t) ** 2 * (x - alpha * MEAN)

    return denoise
