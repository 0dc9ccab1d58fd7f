"""Features of real pictures on disk, each file named by all that it depends on."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.metrics.features import FeatureIdentity


def identity_of(pictures: str, network: FeatureIdentity, name: str) -> dict[str, str]:
    """What a table of features depends on: pictures by their sha256, the network, which of its features."""
    return {"pictures": pictures, "network": json.dumps(asdict(network), sort_keys=True), "features": name}


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """A folder with one safetensors file a table.

    Attributes:
        folder: null keeps nothing.
    """

    folder: Path | None

    def read(self, identity: Mapping[str, str], *, rows: int) -> Float[Tensor, "n d"] | None:
        """A table, or nothing where there is none or its file is damaged.

        Raises:
            ValueError: the file under this name tells that it is another table, say of another protocol.
        """
        path = self._path(identity)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                told, table = file.metadata() or {}, file.get_tensor("features")
        except (SafetensorError, OSError):
            return None
        if told != dict(identity):
            other = next((key for key in identity if told.get(key) != identity[key]), "a field")
            raise ValueError(
                f"{path} holds features of another protocol, their {other} differ: remove the file, and it "
                f"is made anew"
            )
        return table if len(table) == rows and table.isfinite().all() else None

    def write(self, identity: Mapping[str, str], table: Float[Tensor, "n d"]) -> None:
        """Keeps a table, whole or not at all; a folder that can't be written is passed over with a word."""
        path = self._path(identity)
        if path is None:
            return
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": table.contiguous()}, temporary, metadata=dict(identity))
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            print(f"features are not kept in {path.parent} ({error}): they are computed again next time")
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _path(self, identity: Mapping[str, str]) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:24]
        return self.folder / f"{name}.safetensors"
