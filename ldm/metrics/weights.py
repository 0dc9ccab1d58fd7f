"""Weights of feature networks: which are known, where they lie, how they are fetched and checked."""

import hashlib
import os
import urllib.request
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from tqdm import tqdm

from ldm import UserError
from ldm.io.reading import hash_file
from ldm.io.writing import DiskFull, writing

CHUNK = 1 << 20  # bytes read at once
PATIENCE = 30.0  # seconds without an answer after which a server counts as out of reach


class Weights(NamedTuple):
    """One published file.

    Attributes:
        sha256: of the file as published; the name or the address of most carries its beginning.
        licence: of the weights, as their publisher states it.
    """

    url: str
    bytes: int
    sha256: str
    licence: str

    @property
    def path(self) -> Path:
        """Where the file lies once it is fetched: in `$LDM_WEIGHTS`, or in `~/.cache/ldm/weights`."""
        folder = os.environ.get("LDM_WEIGHTS") or os.path.expanduser("~/.cache/ldm/weights")
        return Path(folder) / self.url.rpartition("/")[2]


def _clip(sha256: str, file: str, size: int) -> Weights:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
    return Weights(url, bytes=size, sha256=sha256, licence="MIT")


KNOWN = {
    "inception": Weights(  # of Heusel et al. 2017, converted from TensorFlow's graph of 2015-12-05
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        bytes=95_628_359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        licence="Apache-2.0",
    ),
    "dinov2_vitl14": Weights(
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        bytes=1_217_586_395,
        sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        licence="Apache-2.0",
    ),
    "clip_vit_b32": _clip(
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt", 353_976_522
    ),
    "clip_vit_l14": _clip(
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt", 932_768_134
    ),
    "clip_vit_l14_336": _clip(
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px.pt", 934_088_680
    ),
    "alexnet": Weights(  # what LPIPS stands on
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        bytes=244_408_911,
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        licence="BSD-3-Clause",
    ),
}


def known(name: str) -> Weights:
    """The entry of `KNOWN`; UserError for an unknown name."""
    if name not in KNOWN:
        raise UserError(f"there are no known weights {name!r}; there are: {', '.join(KNOWN)}")
    return KNOWN[name]


def describe(names: Iterable[str]) -> str:
    """A line per file to be fetched: name, size, sha256, licence, address; UserError for an unknown name."""
    lines = []
    for name in names:
        url, size, sha256, licence = known(name)
        lines.append(f"{name}: {size / 1e6:,.1f} MB, sha256 {sha256}, licence {licence}, {url}")
    return "\n".join(lines)


def locate(name: str, path: str | Path | None = None, *, sha256: str | None = None) -> tuple[Path, str]:
    """The file of some weights, and its sha256, which was compared.

    Args:
        path: a file of one's own; by default where `fetch` puts it.
        sha256: what the file must have; by default the published one's.

    Raises UserError: no such file, or another one.
    """
    entry = known(name)
    found, sha256 = Path(path or entry.path), sha256 or entry.sha256
    if not found.is_file():
        raise UserError(
            f"weights {name!r} are not at {found}: python -m ldm.evaluate fetch=true and a protocol that "
            f"reads them, such as protocol=flickr30k_heldout, downloads them; or give the path of a copy"
        )
    check(found, sha256=sha256)
    return found, sha256


def check(path: Path, *, sha256: str, remedy: str = "remove the file and fetch it again") -> None:
    """Compares a file's hash; UserError for another hash, and the remedy."""
    if (found := hash_file(path)) != sha256:
        raise UserError(f"weights {path} have sha256 {found[:12]}, expected {sha256[:12]}: {remedy}")


def fetch(name: str, *, progress: bool = True) -> Path:
    """Downloads weights to where `locate` finds them, unless they are there, and checks them.

    The file takes its name once its hash is right.

    Raises:
        UserError: the server can't be reached, or sent another file.
        DiskFull: there is no room.
    """
    entry = known(name)
    path, sha256 = entry.path, hashlib.sha256()
    if path.is_file():
        check(path, sha256=entry.sha256)
        return path
    try:
        with (
            writing(path, size=entry.bytes) as file,
            urllib.request.urlopen(entry.url, timeout=PATIENCE) as response,
            tqdm(total=entry.bytes, desc=name, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                sha256.update(chunk)
                bar.update(len(chunk))
            if (found := sha256.hexdigest()) != entry.sha256:
                raise UserError(
                    f"weights {name!r} from {entry.url} have sha256 {found[:12]}, expected "
                    f"{entry.sha256[:12]}: nothing was kept, fetch them again"
                )
    except DiskFull:
        raise
    except OSError as error:  # URLError, HTTPError and time-outs are OSErrors
        raise UserError(
            f"weights {name!r} can't be fetched from {entry.url} ({getattr(error, 'reason', error)}): on a "
            f"machine with network access, download that file and put it at {path}"
        ) from error
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file by name; nothing in it is executed.

    Raises UserError: a file that is neither.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise UserError(
            f"weights {path} are no file of tensors alone ({type(error).__name__}): save them as safetensors"
        ) from error


def load_strictly(net: nn.Module, state: dict[str, Tensor], *, source: Path) -> None:
    """Gives a network its weights, every one of them and no other.

    Raises UserError: a weight that is missing, unknown or of another shape.
    """
    own = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in state.items()}
    if wrong := sorted(name for name in {*own, *theirs} if own.get(name) != theirs.get(name)):
        name = wrong[0]
        raise UserError(
            f"weights {source} don't fit {type(net).__name__}: {len(wrong)} differ, first {name!r} with "
            f"shape {theirs.get(name, 'missing')}, expected {own.get(name, 'none')}"
        )
    net.load_state_dict(state, assign=True)  # a network on the meta device gets its memory here


def freeze(net: nn.Module) -> None:
    """Prepares a convolutional network for inference in place; its features move by rounding alone.

    Evaluation mode, no gradients of its weights, and each batch norm folded into the convolution before it.
    """
    for module in list(net.eval().modules()):
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    net.requires_grad_(False).to(memory_format=torch.channels_last)  # twice as fast on CPU
