"""What a system that generates pictures from prompts must offer, and one that was opened from its bundle."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures that generation starts from, one for each prompt.

    Attributes:
        images: of the generator's size.
        strength: how much noise they get, as the time that sampling starts at: 0 to 1.
        redrawn: the pixels that are generated anew; the others stay as they are, to the byte. None: all.
    """

    images: UInt8[Tensor, "b 3 h w"]
    strength: float = 1.0
    redrawn: Bool[Tensor, "b 1 h w"] | None = None


@runtime_checkable
class Generator(Protocol):
    """A trained system that generates pictures: all that sampling, evaluation and callbacks know of it.

    A bundle names the callable that makes its generator: `generator: {_target_: my_systems.open}` in its
    `config.yaml`. That callable is given the bundle, and the options of the command by name.

    Attributes:
        size: side of a picture in pixels.
        tokenizer: what reads the prompts, so that one that is cut is reported; None where none is cut.
        num_parameters: of the network that was trained, for tables; None where there is no such number.
        nfe: network function evaluations for a picture, for tables; None where there is no such number.
        starts_from_pictures: whether `source` may be given.
        reconstruct: uint8 pictures (b, 3, size, size) through the system's autoencoder and back, as a
            reference for its numbers; None where there is no autoencoder.
    """

    @property
    def size(self) -> int: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def num_parameters(self) -> int | None: ...
    @property
    def nfe(self) -> int | None: ...
    @property
    def starts_from_pictures(self) -> bool: ...
    @property
    def reconstruct(self) -> Callable[[Tensor], Tensor] | None: ...

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], *, source: Source | None = None
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One picture for each prompt and seed, which decide it together with `settings` and the weights."""
        ...

    def to(self, device: torch.device | str) -> "Generator":
        """The same generator on a device; its networks may be moved in place."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Everything but weights, prompt and seed that decides the pictures, as plain data.

        Records in pictures, results and hashes of protocols are written from it. Given to the callable that
        the bundle names, it makes an equal generator. A file stands as {path: ..., sha256: ...}.
        """
        ...

    def with_options(self, **changes: Any) -> "Generator":
        """The same generator with other options, those of one picture: `negative`, `scale`, ...

        Raises:
            UserError: an option that it doesn't have, see `check_options`.
        """
        ...


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
        return replace(self, generator=self.generator.with_options(**asked)) if asked else self


def check_options(given: Iterable[str], known: Iterable[str], *, of: object = "this generator") -> None:
    """Refuses options that a generator doesn't have.

    Raises:
        UserError: the first of them, with the nearest one that there is.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f", did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{of} has no option {name!r}{meant}; it has {', '.join(known) or 'none'}")


def files_of(settings: Mapping[str, Any], *, within: str = "") -> dict[str, Mapping[str, str]]:
    """The files that settings name, {path: ..., sha256: ...} by dotted key."""
    found: dict[str, Mapping[str, str]] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            key = f"{within}{name}"
            found |= {key: value} if is_file(value) else files_of(value, within=f"{key}.")
    return found


def by_content(value: Any) -> Any:
    """Settings with the sha256 of each file in place of where it lies."""
    if not isinstance(value, Mapping):
        return value
    return value["sha256"] if is_file(value) else {key: by_content(each) for key, each in value.items()}


def is_file(value: Mapping[str, Any]) -> bool:
    """Whether a part of settings stands for a file."""
    return value.keys() == {"path", "sha256"}
