"""A Frechet distance's reference as a file: mean and covariance of real pictures that need not be there."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm import UserError
from ldm.io.reading import parse_array, parse_json
from ldm.io.writing import writing
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.frechet import Gaussian

FORMAT = 2
MAX_ARRAYS = 2**29  # bytes of all arrays in a file; a covariance of 8,192 features has as many
ROUNDING = 1e-6  # of the trace: what float32 sums leave of an asymmetry or of a negative variance
FOREIGN_FEATURES = "inception"  # of other calculators' files, which don't say how pictures were resized


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What two sets of features must share to be compared: the network, and the pictures it was given."""

    network: FeatureIdentity
    size: int  # side of the pictures in pixels, before the network's own resize
    resize: str  # how they were brought to it


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and covariance of the features of a set of real pictures; None where a file doesn't say."""

    gaussian: Gaussian
    features: str  # their name
    count: int | None  # of the pictures
    preparation: Preparation | None
    of: str  # sha256 of pictures and networks; without a preparation, of the numbers themselves

    @classmethod
    def read(cls, path: Path) -> "Statistics":
        """A file that `write` wrote, or one of pytorch-fid or clean-fid, which hold `mu` and `sigma` alone.

        Nothing in it is executed. Raises UserError: no such file, or no mean and covariance as written.
        """
        try:
            arrays = read_arrays(path)
        except FileNotFoundError:
            raise UserError(f"there is no file {path}: write_statistics=<file.npz> makes one") from None
        except UserError as error:
            raise UserError(f"{error}: write it anew") from error
        gaussian = _gaussian(arrays, path)
        return cls(gaussian=gaussian, **_origin(arrays, gaussian, path))

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all; UserError for statistics without a preparation."""
        if self.preparation is None:
            raise UserError(f"statistics of unknown preparation are not written again: {path} would lie")
        arrays = {
            "format": np.array(FORMAT),
            "mu": self.gaussian.mean.numpy(),
            "sigma": self.gaussian.covariance.numpy(),
            "count": np.array(self.count),
            "features": np.array(self.features),
            "preparation": np.array(json.dumps(asdict(self.preparation), sort_keys=True)),
            "of": np.array(self.of),
        }
        with writing(path) as file:
            np.savez(file, **arrays, sha256=_digest(arrays))

    def check(self, preparations: Mapping[str, Preparation], *, source: str) -> None:
        """Refuses statistics that don't fit the preparations, by features, of what is measured.

        Raises UserError: features that aren't measured, or another network, input size, resize or size.
        """
        if self.features not in preparations:
            raise UserError(
                f"statistics={source} are of the features {self.features!r}, the protocol measures "
                f"{', '.join(preparations)}: choose a protocol with that network, or other statistics"
            )
        if self.preparation is None:
            return
        theirs, ours = _flat(self.preparation), _flat(preparations[self.features])
        if (other := next((name for name in ours if theirs[name] != ours[name]), None)) is not None:
            raise UserError(
                f"statistics={source} were taken with {other} {str(theirs[other])[:40]!r}, the protocol has "
                f"{str(ours[other])[:40]!r}: write them anew under this protocol, or measure under theirs"
            )


def _gaussian(arrays: Mapping[str, np.ndarray], path: Path) -> Gaussian:
    """The numbers of a file; raises a UserError where they are no mean and covariance."""
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path} holds {', '.join(arrays) or 'nothing'}: statistics have mu and sigma")
    mean, covariance = both = arrays["mu"], arrays["sigma"]
    width = mean.size
    if not width or mean.shape != (width,) or covariance.shape != (width, width):
        wrong = f"has mu of shape {mean.shape} and sigma of {covariance.shape}, not (d,) and (d, d)"
    elif not all(np.issubdtype(each.dtype, np.floating) and np.isfinite(each).all() for each in both):
        wrong = "holds mu and sigma that are not all finite numbers"
    elif min(each.dtype.itemsize for each in both) < 4:
        raise UserError(
            f"{path} holds mu of {mean.dtype} and sigma of {covariance.dtype}, too coarse for a distance: "
            f"write both in float32 or float64"
        )
    else:
        gaussian = Gaussian(*(torch.from_numpy(each.astype(np.float64)) for each in both))
        if not (wrong := _no_covariance(gaussian.covariance)):
            return gaussian
    raise UserError(f"{path} {wrong}: write it anew")


def _no_covariance(matrix: Tensor) -> str:
    """What makes a matrix no covariance, beyond rounding; empty where nothing does."""
    trace, asymmetry = float(matrix.trace()), (matrix - matrix.T).abs().max()
    if asymmetry > ROUNDING * abs(trace):
        return f"holds a sigma that is not symmetric (by up to {asymmetry:.3g})"
    smallest = max(ROUNDING * trace, np.finfo(np.float64).tiny)
    lifted = matrix + smallest * torch.eye(len(matrix), dtype=matrix.dtype)
    negative = torch.linalg.cholesky_ex(lifted).info  # it succeeds for a positive definite matrix alone
    return "holds a sigma with negative variances (it is not positive semidefinite)" if negative else ""


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of everything that `write` puts into a file."""
    digest = hashlib.sha256()
    for name in sorted(arrays.keys() - {"sha256"}):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def _origin(arrays: Mapping[str, np.ndarray], gaussian: Gaussian, path: Path) -> dict[str, Any]:
    """What a file says besides its numbers."""
    if "preparation" not in arrays:
        digest = hashlib.sha256(b"".join(each.numpy().tobytes() for each in gaussian)).hexdigest()
        return {"features": FOREIGN_FEATURES, "count": None, "preparation": None, "of": digest}
    try:
        if int(arrays["format"]) != FORMAT:
            raise UserError(f"{arrays['format']}, this version reads {FORMAT}")
        stated, count = parse_json(str(arrays["preparation"]), name="preparation"), arrays["count"]
        origin = {
            "features": str(arrays["features"]),
            "count": int(count),
            "preparation": Preparation(**{**stated, "network": FeatureIdentity(**stated["network"])}),
            "of": str(arrays["of"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} records its origin in another format ({error}): write it anew") from error
    if count.dtype.kind not in "iu" or count < 2:
        raise UserError(f"{path} has count={count}: statistics are of two pictures or more; write it anew")
    if str(arrays.get("sha256")) != _digest(arrays):
        raise UserError(f"{path} differs from what was written (sha256): write it anew")
    return origin


def _flat(preparation: Preparation) -> dict[str, Any]:
    """Every field with a name that a sentence can hold."""
    network = {f"network {name}": value for name, value in asdict(preparation.network).items()}
    return network | {"picture size": preparation.size, "picture resize": preparation.resize}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not {entry.compress_type for entry in entries} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise UserError("it is compressed in another way than numpy's")
            if sum(entry.file_size for entry in entries) > MAX_ARRAYS:
                raise UserError(f"its arrays take more than {MAX_ARRAYS} bytes")
            read = {entry.filename.removesuffix(".npy"): archive.read(entry) for entry in entries}
        return {name: parse_array(data, name=f"array {name!r}") for name, data in read.items()}
    except FileNotFoundError:
        raise
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is no npz file of numbers ({error})") from error
