"""Cross-attention U-Net of latent diffusion (Rombach et al. 2022; Stable Diffusion 1.x at its sizes)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm import UserError
from ldm.models.attention import (
    AttentionPool,
    KeysValues,
    ProjectedContext,
    SpatialTransformer,
    TransformerSpec,
)
from ldm.models.blocks import (
    Downsample,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    apply,
    check_divides,
    level_widths,
    zero,
)

VECTOR = 16  # channels per group from which torch's CPU group norm is fast in channels-last; else 10x slower
NORM_EPS = 1e-5  # Stable Diffusion's, in the residual blocks; its transformers and autoencoder use 1e-6


class Unit(nn.Module):
    """A residual block and, at the levels that have them, the transformer after it."""

    def __init__(
        self, c_in: int, c_out: int, *, time_width: int, norm_groups: int, spec: TransformerSpec | None
    ) -> None:
        super().__init__()
        self.resnet = ResnetBlock(c_in, c_out, norm_groups=norm_groups, eps=NORM_EPS, time_width=time_width)
        self.transformer = SpatialTransformer(c_out, spec=spec, norm_groups=norm_groups) if spec else None
        self.depth = spec.depth if spec else 0

    def project(self, context: Float[Tensor, "b m e"]) -> tuple[KeysValues, ...]:
        """Keys and values for each of the ``depth`` cross-attentions."""
        return self.transformer.project(context) if self.transformer else ()

    def forward(
        self, x: Float[Tensor, "b c_in h w"], time: Float[Tensor, "b t"], context: tuple[KeysValues, ...]
    ) -> Float[Tensor, "b c_out h w"]:
        """The feature map after both parts."""
        h = self.resnet(x, time)
        return self.transformer(h, context) if self.transformer else h


class Level(nn.Module):
    """The units of one resolution and the change to the next; the last level of a side has none."""

    def __init__(self, units: Sequence[Unit], resample: nn.Module | None) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.resample = resample or nn.Identity()


def context_pool(spec: TransformerSpec, width: int) -> AttentionPool:
    """The pool of a context; its number of heads is what ``spec`` gives for the width of the context."""
    return AttentionPool(spec.context_dim, width, num_heads=spec.heads(spec.context_dim))


UnitFactory = Callable[..., Unit]
Specs = Sequence[TransformerSpec | None]


def down_levels(unit: UnitFactory, widths: Sequence[int], specs: Specs, blocks: int) -> Iterator[Level]:
    """Levels from fine to coarse; ``widths`` begins with that of the input."""
    for i, spec in enumerate(specs):
        c_in, c_out = widths[i : i + 2]
        units = [unit(c_in if j == 0 else c_out, c_out, spec=spec) for j in range(blocks)]
        yield Level(units, Downsample(c_out, pad_all_around=True) if i < len(specs) - 1 else None)


def up_levels(unit: UnitFactory, widths: Sequence[int], specs: Specs, blocks: int) -> Iterator[Level]:
    """Levels from coarse to fine; each unit reads one feature map of the way down beside its input.

    Those have the level's own width, but for the last, which is the one that came into the level.
    """
    before = widths[-1]  # the middle has the width of the coarsest level
    for i in reversed(range(len(specs))):
        c_in, c_out = widths[i : i + 2]
        inputs, skips = [before] + [c_out] * (blocks - 1), [c_out] * (blocks - 1) + [c_in]
        units = [unit(a + b, c_out, spec=specs[i]) for a, b in zip(inputs, skips, strict=True)]
        yield Level(units, Upsample(c_out) if i > 0 else None)
        before = c_out


class UNet(nn.Module):
    """Noisy latents, network times (about 0 to 1000) and a context to a prediction shaped like the latents.

    ``multipliers`` of ``channels``, one per resolution, may be fractions. ``patch`` folds squares of latents
    into channels at the input and back at the output. ``checkpointing`` is activation checkpointing of the
    units.

    Attributes:
        hidden: (channels, latents along a side of one place) of each hidden state that `forward` returns when
            asked: at the end of each level on the way down, of the middle, of each level on the way up. Level
            0 is the finest.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        channels: int,
        multipliers: Sequence[float | int],
        blocks_per_level: int,
        transformer: TransformerSpec,
        norm_groups: int = 32,
        patch: int = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        widths = level_widths(channels, multipliers, norm_groups=norm_groups)
        if len(transformer.levels) != len(widths):
            raise UserError(
                f"transformer.levels={transformer.levels} has {len(transformer.levels)} entries for "
                f"{len(widths)} multipliers; give one true or false per resolution."
            )
        self.latent_channels, self.context_dim = latent_channels, transformer.context_dim
        self.checkpointing = checkpointing
        self.patch = patch
        self.factor = patch * 2 ** (len(widths) - 1)
        sizes = [(width, patch * 2**i) for i, width in enumerate(widths)]
        self.hidden = {f"down{i}": size for i, size in enumerate(sizes)} | {"middle": sizes[-1]}
        self.hidden |= {f"up{i}": sizes[i] for i in reversed(range(len(sizes)))}
        # channels-last makes feature maps tokens without a copy, but wants wide groups
        vectorised = min(widths) // norm_groups >= VECTOR
        self.memory_format = torch.channels_last if vectorised else torch.contiguous_format

        time_width = 4 * channels  # released code of Ho et al. 2020
        self.time = TimeEmbedding(channels, time_width)
        self.pool = context_pool(transformer, time_width) if transformer.pool_context else None
        self.conv_in = nn.Conv2d(latent_channels * patch**2, channels, 3, padding=1)
        unit = partial(Unit, time_width=time_width, norm_groups=norm_groups)
        specs = [transformer if attention else None for attention in transformer.levels]
        self.down = nn.ModuleList(down_levels(unit, [channels, *widths], specs, blocks_per_level))
        bottom = widths[-1]
        # one transformer between two residual blocks, as in Stable Diffusion
        self.middle = nn.ModuleList([unit(bottom, bottom, spec=transformer), unit(bottom, bottom, spec=None)])
        # + 1: a level's units read its blocks' outputs and, the last one, what came into the level
        self.up = nn.ModuleList(up_levels(unit, [channels, *widths], specs, blocks_per_level + 1))
        self.norm_out = nn.GroupNorm(norm_groups, widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], latent_channels * patch**2, 3, padding=1)
        self.initialise()

    def initialise(self) -> None:
        """Zeroes every layer that ends a branch; the rest keeps torch's own initialisation."""
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                zero(module.conv_out)  # a residual block starts as its shortcut (Goyal et al. 2017, sec. 5.1)
            elif isinstance(module, SpatialTransformer):
                zero(module.proj_out)  # a transformer starts as the identity
        zero(self.conv_out)  # the first prediction is 0, the mean of every target

    def project_context(self, context: Float[Tensor, "b m e"]) -> ProjectedContext:
        """Keys, values and pooled vector of a context, to be passed in its place to several calls."""
        # registered in the order in which forward meets them
        units = [module for module in self.modules() if isinstance(module, Unit)]
        keys_values = tuple(pair for unit in units for pair in unit.project(context))
        return ProjectedContext(keys_values=keys_values, pooled=self.pool(context) if self.pool else None)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        context: Float[Tensor, "b m e"] | ProjectedContext,
        hidden: Sequence[str] = (),
    ) -> Float[Tensor, "b c h w"] | tuple[Tensor, dict[str, Tensor]]:
        """The prediction; `context` may be projected already, as it is for all steps of a sampler.

        With names of `hidden` states, also those by name, (b, channels, rows, columns).
        """
        check_divides(x, self.factor)
        if isinstance(context, Tensor):
            context = self.project_context(context)
        time = self.time(t)
        # SiLU once for all residual blocks, as each of them would apply it to the same vector
        time = F.silu(time if context.pooled is None else time + context.pooled)
        # an iterator: each unit takes as many pairs as it has blocks, in the order of `project_context`
        run = partial(self._run, time=time, pairs=iter(context.keys_values))

        patches = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        h = self.conv_in(patches.contiguous(memory_format=self.memory_format))
        skips, states = [h], {}
        for i, level in enumerate(levels(self.down)):
            for unit in level.units:
                h = run(unit, h)
                skips.append(h)
            if (name := f"down{i}") in hidden:  # else not kept until the end
                states[name] = h
            if not isinstance(level.resample, nn.Identity):
                h = level.resample(h)
                skips.append(h)
        for unit in self.middle:
            h = run(unit, h)
        states["middle"] = h
        for i, level in enumerate(levels(self.up)):
            for unit in level.units:
                h = run(unit, torch.cat([h, skips.pop()], dim=1))  # in Stable Diffusion's order of channels
            if (name := f"up{len(self.up) - 1 - i}") in hidden:
                states[name] = h
            h = level.resample(h)
        out = self.conv_out(F.silu(self.norm_out(h)))
        out = F.pixel_shuffle(out, self.patch) if self.patch > 1 else out
        return (out, {name: states[name] for name in hidden}) if hidden else out

    def _run(self, unit: nn.Module, x: Tensor, *, time: Tensor, pairs: Iterator[KeysValues]) -> Tensor:
        context = tuple(islice(pairs, cast(Unit, unit).depth))
        return apply(unit, x, time, context, recompute=self.checkpointing)


def levels(modules: nn.ModuleList) -> Iterator[Level]:
    """The modules of a list of levels, with their type."""
    return (cast(Level, module) for module in modules)
