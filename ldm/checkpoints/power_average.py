"""Averages of a training's weights of any length, reconstructed after it (Karras et al. 2024, sec. 3).

A training writes a few averages whose memory grows with its steps. An average of another length or step is
the weighted sum of those that is nearest to it by least squares.
"""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle_writer import save_tensors
from ldm.io.fields import Fields
from ldm.io.reading import parse_json
from ldm.io.writing import drafting

NAME = re.compile(r"step=(\d{8})_length=([\d.e-]+)\.safetensors")
CHECKSUMS = "crc32"  # of each tensor, in a file's metadata
LONGEST = 12**-0.5  # of the exponent 0, which weighs all steps alike


@dataclass(frozen=True, order=True)
class Profile:
    """The weight of each step in an average: step s counts as s**exponent."""

    step: int  # the last one
    length: float  # standard deviation of the steps under these weights, as a share of `step`

    @property
    def exponent(self) -> float:
        """gamma, see `exponent_of`."""
        return exponent_of(self.length)

    def overlap(self, other: "Profile") -> float:
        """Integral of the product of two profiles (Alg. 3)."""
        (early, low), (late, high) = sorted(((self.step, self.exponent), (other.step, other.exponent)))
        return (low + 1) * (high + 1) / (low + high + 1) * (early / late) ** high / late


def exponent_of(length: float) -> float:
    """gamma of an average: the root above 0 of length^2 (gamma + 2)^2 (gamma + 3) = gamma + 1 (Alg. 2).

    A length outside (0, 0.2887) raises UserError.
    """
    if not 0 < length < LONGEST:
        raise UserError(f"an average's length of {length:g} must lie above 0 and below {LONGEST:.4f}")
    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())


def decay(step: int, exponent: float) -> float:
    """The share of itself that an average keeps at a step, counted from 1 (eq. 2 and 3)."""
    return (1 - 1 / step) ** (exponent + 1)


def shares(kept: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """Coefficients with which the sum of the kept profiles is nearest to the wanted one in least squares."""
    overlaps = np.array([[a.overlap(b) for b in kept] for a in kept])
    return np.linalg.lstsq(overlaps, np.array([a.overlap(wanted) for a in kept]), rcond=None)[0]


@dataclass(frozen=True)
class Averages:
    """The averages that a training has written."""

    folder: Path  # <run>/averages

    def write(self, profile: Profile, parameters: Mapping[str, Tensor]) -> Path:
        """Writes one whole or not at all, and returns its path; it replaces one of the same name."""
        path = self.folder / f"step={profile.step:08d}_length={profile.length:g}.safetensors"
        with drafting(path, below=self.folder.parent) as draft:
            tensors = {name: value.cpu().contiguous() for name, value in parameters.items()}
            checksums = {name: checksum(each) for name, each in tensors.items()}
            # one entry: the library writes several in random order, and the bytes of two runs would differ
            save_tensors(tensors, draft, metadata={CHECKSUMS: json.dumps(checksums)})
        return path

    def kept(self, *, until: int) -> dict[Profile, Path]:
        """The files of steps up to one, in the order of their steps."""
        found = ((NAME.fullmatch(path.name), path) for path in self.folder.glob("step=*"))
        profiles = {Profile(int(match[1]), float(match[2])): path for match, path in found if match}
        return {profile: path for profile, path in sorted(profiles.items()) if profile.step <= until}

    def average(self, wanted: Profile) -> dict[str, Tensor]:
        """Parameters of an average of any length, float32; UserError if no file serves or one is damaged."""
        if not (kept := self.kept(until=wanted.step)):
            raise UserError(
                f"{self.folder} holds no averages up to step {wanted.step}: train with "
                "callbacks.averages.lengths=[0.05,0.1] for more than callbacks.averages.every steps"
            )
        weights = shares(list(kept), wanted).tolist()
        files = [(path, *_opened(path)) for path in kept.values()]
        average = {}
        # tensor by tensor, so that memory never holds whole files
        for name in files[0][1].keys():  # noqa: SIM118
            terms = [
                _tensor(*each, name).double() * weight for each, weight in zip(files, weights, strict=True)
            ]
            average[name] = torch.stack(terms).sum(0).float()
        return average


def checksum(tensor: Tensor) -> str:
    """crc32 of a tensor's bytes, in hexadecimal."""
    return f"{zlib.crc32(tensor.flatten().view(torch.uint8).numpy()):08x}"


def _opened(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """An open file and the checksums of its tensors, which earlier versions did not write."""
    try:
        file = safe_open(path, framework="pt")
        text = (file.metadata() or {}).get(CHECKSUMS, "{}")
        return file, Fields.of(parse_json(text, name=CHECKSUMS), name=CHECKSUMS).values
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _tensor(path: Path, file: Any, checksums: Mapping[str, Any], name: str) -> Tensor:
    """One tensor of an open file; UserError if it is missing or not the one that was written."""
    try:
        tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    if checksums.get(name) not in (None, checksum(tensor)):
        raise _damaged(path, f"the checksum of {name} differs")
    return tensor


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is not a whole average ({what}): remove it, the others suffice")
