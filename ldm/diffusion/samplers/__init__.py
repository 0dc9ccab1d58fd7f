"""Samplers: from noise at times[0] to a picture at t = 0, seeing only a denoiser and a schedule.

Coefficients are float64 whatever the state; the state has the dtype of the x that is passed in, and float64
is the better choice (Karras et al. keep it so; the network is given float32 by `Process.denoiser`). Every
update is written in x0, so that a start at alpha = 0 and an end at sigma = 0 need no special care.

Orders hold in the steps before the last, between times where log(alpha / sigma) is finite. Down to t = 0 in
even steps the second order is h^2 log(1/h), and first on DDPM tables, whose sigma^2 grows linearly from 0:
there the step to 0 rules the error. A start at alpha = 0 is first order in its step, so that no method is of
more than second order from there.

One family a file: ancestral (DDPM, DDIM, Euler's ancestral), edm (Euler and Heun with churn), multistep
(DPM-Solver++), corrected (UniPC), pseudo_linear (PNDM), consistency (LCM).
"""

from ldm.diffusion.samplers.ancestral import ddim, ddpm, euler_ancestral
from ldm.diffusion.samplers.consistency import lcm
from ldm.diffusion.samplers.corrected import unipc
from ldm.diffusion.samplers.edm import Churn, edm, euler, heun
from ldm.diffusion.samplers.multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from ldm.diffusion.samplers.pseudo_linear import pndm
from ldm.diffusion.samplers.sampling import Sampling
from ldm.diffusion.samplers.update import log_signal_ratio, step

__all__ = [
    "Churn",
    "Sampling",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "edm",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "log_signal_ratio",
    "pndm",
    "step",
    "unipc",
]
