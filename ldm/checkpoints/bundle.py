"""A bundle: all that sampling and evaluating need, as safetensors and yaml; reading one executes nothing.

```
bundle/config.yaml            parts with their constructors and hashes, latent statistics, process, defaults
bundle/<part>.safetensors     backbone, autoencoder, text_encoder, image_encoder: whichever a stage trained
bundle/tokenizer.json
bundle/README.md              model card; nothing reads it
```
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.card import FILE_NAME as CARD
from ldm.checkpoints.card import model_card
from ldm.checkpoints.tensors import save_tensors
from ldm.checkpoints.tokenizer_file import load_tokenizer, save_tokenizer
from ldm.codec import Codec
from ldm.construct import construct
from ldm.io.fields import MAX_FLOAT, Fields, check_tree
from ldm.io.reading import MAX_YAML, hash_file, is_plain_name, read_yaml
from ldm.io.writing import new_folder, write
from ldm.models.meta_init import meta_init
from ldm.tokenizers import Tokenizer

FORMAT = 1
MAX_SIDE = 2**13  # of a picture, in pixels
# what torch and Python raise where a config describes no network: the config is data, so none of them is ours
UNBUILDABLE = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)
CONFIG, TOKENIZER = "config.yaml", "tokenizer.json"
SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "emoji" / "bundle"


class BundleError(UserError):
    """A bundle that is missing, damaged or lacks a part; the sentence names the file."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A network: the `_target_` tree that builds it, and its weights."""

    spec: Mapping[str, Any]
    state: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle; networks are built when they are asked for."""

    path: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Opens a bundle, or the bundle of a run, or that of an experiment's newest finished run.

        Raises:
            BundleError: nothing there, or a config that can't be read.
        """
        found = find(Path(path))
        try:
            config = Fields.of(read_yaml(found / CONFIG), name=CONFIG)
            if config.values.get("format") != FORMAT:
                raise UserError(f"it has format {config.values.get('format')}, this version reads {FORMAT}")
            check_config(config)
        except UserError as error:
            raise BundleError(f"bundle {found}: {CONFIG} is damaged ({error}): copy it again") from error
        return cls(path=found, config=dict(config.values))

    @property
    def place(self) -> str:
        """The bundle as `bundle=` names it: its path, or `shipped`."""
        return "shipped" if self.path == SHIPPED else str(self.path)

    @property
    def names(self) -> list[str]:
        return sorted(self.config["parts"])

    @cached_property
    def sha256(self) -> str:
        """Identity of config and weights (the config holds the hash of each file)."""
        return hash_file(self.path / CONFIG)

    def entry(self, name: str) -> Any:
        """One entry of the config: process, sampler, guidance, size, ...

        Raises:
            BundleError: there is no such entry.
        """
        if name not in self.config:
            raise BundleError(f"bundle {self.path}: {CONFIG} lacks {name!r}: copy the whole folder again")
        return self.config[name]

    def part(self, name: str) -> Part:
        """Constructor and weights of one part, in float32.

        Raises:
            BundleError: no such part, or a file that is missing, changed, or holds NaN or Inf.
        """
        if name not in self.config["parts"]:
            raise BundleError(f"bundle {self.path} has no {name}; it has {', '.join(self.names)}")
        file, sha256, spec = (self.config["parts"][name][key] for key in ("file", "sha256", "spec"))
        path = self._present(file)
        with ThreadPoolExecutor(max_workers=1) as aside:  # hashing takes as long as looking at every weight
            digest = aside.submit(hash_file, path)
            try:
                state = read_state(path)
            except BundleError:
                check_hash(path, digest.result(), sha256)  # a file that was changed is told of as that
                raise
            check_hash(path, digest.result(), sha256)
        return Part(spec=spec, state=state)

    def network(self, name: str) -> nn.Module:
        """One part, built and loaded, in evaluation mode.

        Raises:
            BundleError: the weights are not those of the network in the config, or it tells of none.
        """
        part = self.part(name)
        try:
            with meta_init(most=2 * sum(max(1, tensor.numel()) for tensor in part.state.values())):
                module = construct(part.spec)
            module.load_state_dict(part.state, assign=True)
        except UNBUILDABLE as error:
            raise BundleError(
                f"bundle {self.path}: the weights of {name} don't fit its config: {str(error)[:400]}"
            ) from error
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        return module.eval()

    def copy_into(self, net: nn.Module, name: str) -> None:
        """Copies the weights of one part into a network that is to be trained on.

        Raises:
            BundleError: no such part, a damaged one, or one of another network.
        """
        state, own = self.part(name).state, net.state_dict()
        sizes, wanted = ({key: tensor.shape for key, tensor in each.items()} for each in (state, own))
        different = sorted(key for key in sizes.keys() | wanted if sizes.get(key) != wanted.get(key))
        if different:
            raise BundleError(
                f"bundle {self.path}: its {name} and the network that is to start as it differ in "
                f"{len(different)} weights, such as {different[0]}: give both the same sizes"
            )
        net.load_state_dict(state)

    def tokenizer(self) -> Tokenizer:
        path = self._present(TOKENIZER)
        check_hash(path, hash_file(path), self.entry("tokenizer")["sha256"])
        return load_tokenizer(path)

    def codec(self) -> Codec:
        return load_codec(autoencoder=str(self.path), text_encoder=str(self.path))

    def _present(self, file: str) -> Path:
        path = self.path / file
        if not path.is_file():
            raise BundleError(f"bundle {self.path} lacks its file {file}: copy the whole folder again")
        return path


def check_config(config: Fields) -> None:
    """Refuses what no bundle's config holds, before anything is built of it.

    Raises:
        UserError: the entry, and what is wrong with it.
    """
    parts = config.mapping("parts")
    for name in parts.values:
        part = parts.mapping(name)
        if not is_plain_name(part.text("file")):
            raise UserError(f"{part.name}: file={part.values['file']!r} is no file in the bundle's folder")
        part.text("sha256")
        check_tree({"spec": part.mapping("spec").values}, name=part.name)
    for name in config.values.keys() & {"process", "sampler", "guidance", "generator"}:
        check_tree(config.mapping(name).values, name=f"{config.name}: {name}")
    if config.values.get("size") is not None:
        config.whole("size", high=MAX_SIDE)
    if config.values.get("latents") is not None:
        config.mapping("latents").numbers("shift", low=-MAX_FLOAT, high=MAX_FLOAT)
        config.mapping("latents").numbers("scale", low=1 / MAX_FLOAT, high=MAX_FLOAT)
    if config.values.get("tokenizer") is not None:
        config.mapping("tokenizer").text("sha256")


def check_hash(path: Path, found: str, expected: str) -> None:
    """Refuses a file that is not the one that was written.

    Raises:
        BundleError: its sha256 is another.
    """
    if found != expected:
        raise BundleError(f"bundle file {path} is damaged (sha256 differs): copy the whole folder again")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, those with fractions in float32.

    Raises:
        BundleError: it is cut or forged, or holds NaN or Inf.
    """
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise BundleError(f"bundle file {path} is not a whole safetensors file ({error})") from error
    state = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    for key, tensor in state.items():
        if not is_finite(tensor):
            raise BundleError(f"bundle file {path}: tensor {key!r} holds NaN or Inf")
    return state


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or Inf: the extremes tell it of all, thirty times as fast as each would."""
    return tensor.numel() == 0 or all(extreme.isfinite() for extreme in tensor.aminmax())


def find(path: Path) -> Path:
    """The bundle that a path means: itself, a run's, the newest of an experiment's runs; `shipped` is ours.

    Raises:
        BundleError: there is none.
    """
    path = SHIPPED if path == Path("shipped") else path
    newest = sorted(path.glob(f"*/bundle/{CONFIG}"))
    for candidate in (path, path / "bundle", *(found.parent for found in newest[::-1])):
        if (candidate / CONFIG).is_file() and _has_parts(candidate / CONFIG):
            return candidate
    if path.parent.name == "runs":
        raise BundleError(
            f"there is no bundle at {path}: python -m ldm.train +experiment={path.name} leaves one there"
        )
    raise BundleError(
        f"there is no bundle at {path}; a finished run leaves one under runs/<experiment>/<run>/bundle"
    )


def _has_parts(config: Path) -> bool:
    """Whether a config is a bundle's, and not a run's."""
    with config.open("rb") as stream:
        return b"parts:" in stream.read(MAX_YAML)


def load_codec(*, autoencoder: str, text_encoder: str) -> Codec:
    """Codec from one bundle or two: autoencoder of the first, text encoder and tokenizer of the second."""
    pictures, texts = Bundle.open(autoencoder), Bundle.open(text_encoder)
    latents = pictures.config.get("latents")
    if latents is None:
        raise BundleError(f"bundle {pictures.path} has no latent statistics: it holds no trained autoencoder")
    net = pictures.network("autoencoder")
    if not len(latents["shift"]) == len(latents["scale"]) == net.latent_channels:
        raise BundleError(
            f"bundle {pictures.path}: its latent statistics are not of {net.latent_channels} channels"
        )
    return Codec(
        autoencoder=net,
        text_encoder=texts.network("text_encoder"),
        tokenizer=texts.tokenizer(),
        latent_shift=torch.tensor(latents["shift"]),
        latent_scale=torch.tensor(latents["scale"]),
    )


def write_bundle(
    path: Path,
    *,
    parts: Mapping[str, Part],
    tokenizer: Tokenizer | None = None,
    settings: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a bundle: it is there whole or not at all.

    Args:
        path: the folder to make; it must not exist.
        settings: further entries of the config: process, latents, sampling defaults, provenance.
        dtype: of the stored floating-point weights.

    Raises:
        NameTaken: `path` is there already.
    """
    size = sum(_bytes(tensor, dtype) for part in parts.values() for tensor in part.state.values())
    with new_folder(path, size=size) as draft:
        config: dict[str, Any] = {"format": FORMAT, "parts": {}, **settings}
        for name, part in parts.items():
            file = draft / f"{name}.safetensors"
            save_tensors({key: _stored(tensor, dtype) for key, tensor in part.state.items()}, file)
            config["parts"][name] = {"file": file.name, "sha256": hash_file(file), "spec": dict(part.spec)}
        if tokenizer is not None:
            save_tokenizer(tokenizer, draft / TOKENIZER)
            config["tokenizer"] = {"sha256": hash_file(draft / TOKENIZER)}
        write(draft / CARD, model_card(config))
        write(draft / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return path


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
