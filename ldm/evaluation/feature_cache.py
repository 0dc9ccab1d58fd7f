"""Features of real pictures on disk, each file named by all that it depends on."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm import UserError
from ldm.io.writing import make_folder, writing
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, append, mapped

ALIGNMENT = 8  # bytes, of the numbers in a safetensors file
CHECKSUM = "sha256"  # of the numbers, in the file's metadata


def identity_of(pictures: str, network: FeatureIdentity, name: str) -> dict[str, str]:
    """What a table of features depends on: pictures by their sha256, the network, which of its features."""
    return {"pictures": pictures, "network": json.dumps(asdict(network), sort_keys=True), "features": name}


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """A folder with one safetensors file a table.

    Attributes:
        folder: null keeps nothing.
        below: the folder that the user named, if it is one above.
    """

    folder: Path | None
    below: Path | None = None

    @classmethod
    def at(cls, folder: str | None, *, root: str) -> "FeatureCache":
        """The cache in a folder, which is made, or none for an empty name.

        Args:
            root: the data set, which may be somebody else's: in it no link is followed.

        Raises:
            LinkRefused: the folder, inside the data set, is a link.
        """
        if not folder:
            return cls(folder=None)
        below = Path(root) if Path(folder).is_relative_to(root) else None
        with suppress(OSError):  # where nothing can be written, features are computed again each time
            make_folder(Path(folder), below=below)
        return cls(folder=Path(folder), below=below)

    def read(self, identity: Mapping[str, str], *, rows: int) -> Float[Tensor, "n d"] | None:
        """A table that lies in its file, or nothing where there is none or, with a word, the file is damaged.

        Every byte is read and compared with the checksum that was written.

        Raises:
            UserError: the file under this name tells that it is another table, say of another protocol.
        """
        path = self._path(identity)
        if path is None or not path.is_file():
            return None
        table = self._whole(path, identity, rows=rows)
        if table is None:
            print(f"{path} is damaged: its features are computed again")
        return table

    def _whole(self, path: Path, identity: Mapping[str, str], *, rows: int) -> Float[Tensor, "n d"] | None:
        try:
            with safe_open(path, framework="pt") as file:
                told, kept = file.metadata() or {}, file.get_slice("features")
                shape, dtype = kept.get_shape(), kept.get_dtype()
        except (SafetensorError, OSError):
            return None
        checksum = told.pop(CHECKSUM, None)  # none in files of earlier versions
        if told != dict(identity):
            other = next((key for key in identity if told.get(key) != identity[key]), "a field")
            raise UserError(
                f"{path} holds features of another protocol, their {other} differ: remove the file, and it "
                f"is made anew"
            )
        if dtype != "F32" or len(shape) != 2 or shape[0] != rows:
            return None
        table = _numbers_of(path, shape)
        return table if checksum == _checksum(table) else None

    def write(self, identity: Mapping[str, str], table: Float[Tensor, "n d"]) -> None:
        """Keeps a table, whole or not at all; a folder that can't be written is passed over with a word."""
        path = self._path(identity)
        if path is None:
            return
        try:
            with writing(path, below=self.below, size=table.numel() * table.element_size()) as file:
                file.write(_header(identity, table))
                append(file, table)
        except OSError as error:
            print(f"features are not kept in {path.parent} ({error}): they are computed again next time")

    def _path(self, identity: Mapping[str, str]) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:24]
        return self.folder / f"{name}.safetensors"


def _header(identity: Mapping[str, str], table: Float[Tensor, "n d"]) -> bytes:
    """What stands before the numbers in a safetensors file: its own length, and json that names one table."""
    size = table.numel() * table.element_size()
    told = {"dtype": "F32", "shape": list(table.shape), "data_offsets": [0, size]}
    metadata = {**identity, CHECKSUM: _checksum(table)}
    text = json.dumps({"__metadata__": metadata, "features": told}).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _checksum(table: Float[Tensor, "n d"]) -> str:
    digest = hashlib.sha256()
    for rows in table.split(ROWS_AT_ONCE):
        digest.update(rows.contiguous().numpy())
    return digest.hexdigest()


def _numbers_of(path: Path, shape: Sequence[int]) -> Float[Tensor, "n d"]:
    """The one table of a safetensors file: its numbers stand last."""
    offset = path.stat().st_size - 4 * math.prod(shape)
    with path.open("rb") as file:
        return mapped(file, shape=shape, dtype=torch.float32, offset=offset)
