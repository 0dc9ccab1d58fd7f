"""Latent diffusion that can be watched: each call of the denoiser is reported, and may end the sampling."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm.diffusion import Denoiser, Noise, Schedule, State, Times
from ldm.diffusion.samplers import Sampling
from ldm.generators.generator import Generator, Progress, Source, Watch
from ldm.generators.latent_diffusion import TextToImage
from ldm.generators.preview import LinearPreview, fit_preview


@dataclass(frozen=True, kw_only=True)
class WatchedSampling(Sampling):
    """A sampling whose denoiser is reported after each call; its samples have the same bits.

    A step is one call of the guided denoiser, so that it takes the same time with every method: Heun's calls
    it twice between two timesteps, all but a few others once.
    """

    watch: Watch
    preview: LinearPreview  # of the denoiser's estimates of x0

    def __call__(
        self,
        denoise: Denoiser,
        schedule: Schedule,
        x: State,
        *,
        noise: Noise | None = None,
        times: Times | None = None,
    ) -> State:
        """x0, as `Sampling` has it; raises what `watch` raises."""
        count, steps = itertools.count(1), self.calls(schedule, times)

        def watched(x: Tensor, t: Tensor) -> Tensor:
            x0 = denoise(x, t)
            self.watch(Progress(next(count), steps, partial(self.preview, x0)))
            return x0

        return super().__call__(watched, schedule, x, noise=noise, times=times)

    def calls(self, schedule: Schedule, times: Times | None) -> int:
        """How often the method calls its denoiser: no formula knows it, so that four numbers are sampled."""
        seen: list[Tensor] = []

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return torch.zeros_like(x)

        super().__call__(denoise, schedule, torch.zeros(1, 1, 2, 2), noise=torch.zeros_like, times=times)
        return len(seen)


@dataclass(frozen=True, kw_only=True)
class WatchedTextToImage(TextToImage):
    """Text to image whose call takes `watch`."""

    preview: LinearPreview

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        source: Source | None = None,
        watch: Watch | None = None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """The pictures of `TextToImage`, to the bit; raises what `watch` raises."""
        if watch is None:
            return super().__call__(prompts, seeds, source=source)
        sampling = WatchedSampling(**_own(self.sampling), watch=watch, preview=self.preview)
        return super(WatchedTextToImage, replace(self, sampling=sampling)).__call__(
            prompts, seeds, source=source
        )


def watchable(generator: Generator) -> Generator:
    """The generator with a call that takes `watch`, if it is latent diffusion; any other as it is."""
    if type(generator) is not TextToImage:
        return generator
    return WatchedTextToImage(**_own(generator), preview=fit_preview(generator.codec))


def _own(built: Any) -> dict[str, Any]:
    return {each.name: getattr(built, each.name) for each in fields(built)}
