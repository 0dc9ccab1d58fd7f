"""The protocol of systems that generate pictures from prompts, and the opener of a bundle's generator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.construct import PACKAGES, locate, nearest, own_packages
from ldm.tokenizers import Tokenizer

TOKENIZER = "ldm.generators.code_bundle.open_tokenizer"  # of bundles that hold nothing else
LATENT_DIFFUSION = "ldm.generators.diffusion_bundle.open_latent_diffusion"  # of bundles that name none


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures that generation starts from, one for each prompt."""

    images: UInt8[Tensor, "b 3 h w"]  # of the generator's size
    strength: float = 1.0  # how much noise they get, as the timestep that sampling starts at: 0 to 1
    # the pixels that are generated anew; the others stay as they are, to the byte. None: all are
    redrawn: Bool[Tensor, "b 1 h w"] | None = None

    def check(self, *, count: int, size: int) -> None:
        """Raises UserError for pictures of another number or size."""
        expected = (count, 3, size, size)
        if self.images.shape != expected:
            raise UserError(f"pictures to start from have shape {tuple(self.images.shape)}, not {expected}")


class Progress(NamedTuple):
    """What a generator reports after each sampling step to the `watch=` of its call, if it takes one."""

    step: int  # from 1 to `steps`
    steps: int
    preview: Callable[[], UInt8[Tensor, "b 3 h w"]]  # the pictures as this step expects them, of any size


Watch = Callable[[Progress], None]  # changes no picture; what it raises ends the generation


@runtime_checkable
class Generator(Protocol):
    """A trained system that generates pictures: all that sampling, evaluation and callbacks know of it.

    A bundle names the callable that makes its generator: `generator: {_target_: my_systems.open}` in its
    `config.yaml`. That callable is given the bundle, and the options of the command by name.
    """

    @property
    def size(self) -> int:
        """Side of a picture in pixels."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the prompts, which tells the ones that are cut; None if no prompt is ever cut."""

    @property
    def num_parameters(self) -> int | None:
        """Of the network that was trained, for tables; None where there is no such number."""

    @property
    def nfe(self) -> int | None:
        """Network function evaluations for a picture, for tables; None where there is no such number."""

    @property
    def starts_from_pictures(self) -> bool:
        """Whether `source` may be given."""

    @property
    def reconstruct(self) -> Callable[[Tensor], Tensor] | None:
        """Uint8 pictures (b, 3, size, size) through the autoencoder and back; None without one."""

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], *, source: Source | None = None
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One picture for each prompt and seed, which decide it together with `settings` and the weights."""

    def to(self, device: torch.device | str) -> "Generator":
        """The same generator on a device; its networks may be moved in place."""

    def settings(self) -> Mapping[str, Any]:
        """Everything but weights, prompt and seed that decides the pictures, as plain data.

        Records in pictures, results and hashes of protocols are written from it. Given to the callable that
        the bundle names, it makes an equal generator. A file stands as {path: ..., sha256: ...}.
        """

    def with_options(self, **changes: Any) -> "Generator":
        """The same generator with other options, those of one picture: `negative`, `scale`, ...

        Raises UserError for an option that it doesn't have, see `check_options`.
        """


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A generator with the bundle that it was opened from."""

    generator: Generator
    bundle: Bundle

    def to(self, device: torch.device | str) -> "Opened":
        """The same on a device."""
        return replace(self, generator=self.generator.to(device))

    def with_options(self, **changes: Any) -> "Opened":
        """The same with other options; those that are None or empty change nothing."""
        asked = {name: value for name, value in changes.items() if value not in (None, "")}
        # nothing asked, nothing called: a generator need not know any option
        return replace(self, generator=self.generator.with_options(**asked)) if asked else self


def open_generator(bundle: Bundle, **options: Any) -> Opened:
    """The generator of a bundle: what its entry `generator` names, called with the bundle and options.

    Options that are None are the bundle's own: further keys of its entry `generator`, or defaults.

    Raises UserError for a callable of a package that LDM_PACKAGES doesn't name; an option that it doesn't
    have. Raises BundleError for a bundle that it can't generate from.
    """
    # before anything is imported: to import a module is to run its code
    target = target_of(bundle)
    package = target.partition(".")[0]
    if package != "ldm" and package not in own_packages():
        raise UserError(
            f"bundle {bundle.path} generates by {target}, which is code of another package: if you have that"
            f" package and trust it, set {PACKAGES}={package}"
        )
    opener = locate(target, allowed=("ldm.generators.",))
    asked = dict(bundle.config.get("generator", {}))
    asked.pop("_target_", None)
    asked |= {name: value for name, value in options.items() if value is not None}
    parameters = list(signature(opener).parameters.values())
    if all(each.kind is not Parameter.VAR_KEYWORD for each in parameters):  # else it checks them itself
        check_options(asked, [each.name for each in parameters[1:]], of=f"the generator of {bundle.path}")
    return Opened(generator=opener(bundle, **asked), bundle=bundle)


def target_of(bundle: Bundle) -> str:
    """The name of the callable that makes a bundle's generator."""
    default = TOKENIZER if bundle.names == ["image_tokenizer"] else LATENT_DIFFUSION
    return str(bundle.config.get("generator", {}).get("_target_", default))


def check_options(given: Iterable[str], known: Iterable[str], *, of: object = "this generator") -> None:
    """Raises UserError for the first option that a generator doesn't have, with the nearest one."""
    known = list(known)
    for name in given:
        if name not in known:
            there = ", ".join(known) or "none"
            raise UserError(f"{of} has no option {name!r}{nearest(name, known)}; it has {there}")
