"""A bundle: everything that sampling and evaluation need, as safetensors and yaml.

```
bundle/config.yaml            parts with their constructors and hashes, latent statistics, process, defaults
bundle/<part>.safetensors     backbone, autoencoder, text_encoder, image_encoder: whichever a stage trained
bundle/tokenizer.json
bundle/README.md              model card; nothing reads it
```

Anybody may have written the folder: reading it executes nothing, and every value is checked before its use.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm import UserError
from ldm.construct import construct, locate
from ldm.io.fields import MAX_FLOAT, Fields, check_tree
from ldm.io.reading import MAX_YAML, hash_file, is_plain_name, read_json, read_yaml
from ldm.models.meta_init import meta_init
from ldm.tokenizers import TOKENIZER_FORMAT, Tokenizer

FORMAT = 1
MAX_SIDE = 2**13  # of a picture, in pixels
# Errors that torch and Python raise for a config, which is foreign data, that describes no network.
UNBUILDABLE = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)
CONFIG, TOKENIZER = "config.yaml", "tokenizer.json"
TOKENIZERS = {  # by the format of their file
    TOKENIZER_FORMAT: "ldm.tokenizers.Tokenizer",
    "ldm-word-pieces-1": "ldm.tokenizers.listed.WordPieces",
}
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
        """Opens the bundle that `find` finds; BundleError if there is none or its config can't be read."""
        found = find(Path(path))
        try:
            config = Fields.of(read_yaml(found / CONFIG), name=CONFIG)
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
        """Names of its parts."""
        return sorted(self.config["parts"])

    @cached_property
    def sha256(self) -> str:
        """Identity of config and weights (the config holds the hash of each file)."""
        return hash_file(self.path / CONFIG)

    def entry(self, name: str) -> Any:
        """One entry of the config, such as process, sampler or size; BundleError if it is missing."""
        if name not in self.config:
            raise BundleError(f"bundle {self.path}: {CONFIG} lacks {name!r}: copy the whole folder again")
        return self.config[name]

    def spec(self, name: str) -> dict[str, Any]:
        """The `_target_` tree of one part, without its weights; BundleError if there is no such part."""
        if name not in self.config["parts"]:
            raise BundleError(f"bundle {self.path} has no {name}; it has {', '.join(self.names)}")
        return dict(self.config["parts"][name]["spec"])

    def part(self, name: str) -> Part:
        """Constructor and weights of one part, float32; BundleError if it is missing, changed, NaN or Inf."""
        spec = self.spec(name)
        file, sha256 = (self.config["parts"][name][key] for key in ("file", "sha256"))
        path = self.path / file
        with ThreadPoolExecutor(max_workers=1) as hashing:  # takes as long as the check for NaN and Inf
            checked = hashing.submit(self._checked, file, sha256)
            try:
                state = read_weights(path) if path.is_file() else {}  # a pipe would be read for ever
            finally:  # if both fail, the hash's error counts: it explains the other
                checked.result()
        return Part(spec=spec, state=state)

    def network(self, name: str) -> nn.Module:
        """One part, built and loaded, in evaluation mode; BundleError if its weights don't fit its config."""
        part = self.part(name)
        try:
            module = meta_network(part.spec, part.state)
            module.load_state_dict(part.state, assign=True)
        except UNBUILDABLE as error:
            raise BundleError(
                f"bundle {self.path}: the weights of {name} don't fit its config: {str(error)[:400]}"
            ) from error
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        return module.eval()

    def copy_into(self, net: nn.Module, name: str) -> None:
        """Copies the weights of one part into a network of the same sizes; BundleError for other sizes."""
        state = self.part(name).state
        if different := differing(state, net.state_dict()):
            raise BundleError(
                f"bundle {self.path}: its {name} and the network that is to start as it differ in "
                f"{len(different)} weights, such as {different[0]}: give both the same sizes"
            )
        net.load_state_dict(state)

    def tokenizer(self, read: Callable[[Path], Tokenizer] | None = None) -> Tokenizer:
        """Its tokenizer, by default as `load_tokenizer` reads it; BundleError if it is missing or changed."""
        return (read or load_tokenizer)(self._checked(TOKENIZER, self.entry("tokenizer")["sha256"]))

    def texts(self) -> tuple[Any, Tokenizer]:
        """Its text encoder and tokenizer; BundleError if one is missing or doesn't go with the other."""
        encoder, tokenizer = self.network("text_encoder"), self.tokenizer()
        for name in ("context_length", "pad_id"):  # else the states of pads would be silently wrong
            own, other = getattr(tokenizer, name), getattr(encoder, name, None)
            if other not in (own, None):
                raise BundleError(f"{self.path}: {name}={other}, but its tokenizer's is {own}: copy it again")
        return encoder, tokenizer

    def _checked(self, file: str, sha256: str) -> Path:
        """The path of a file; BundleError if it is missing or not the one that was written."""
        path = self.path / file
        if not path.is_file():
            raise BundleError(f"bundle {self.path} lacks its file {file}: copy the whole folder again")
        if hash_file(path) != sha256:
            raise BundleError(f"bundle file {path} is damaged (sha256 differs): copy the whole folder again")
        return path


def find(path: Path) -> Path:
    """The bundle at a path, in the run there, or of the newest finished run of the experiment there.

    The word `shipped` stands for the bundle of this repository; BundleError if there is none.
    """
    path = SHIPPED if path == Path("shipped") else path
    newest = sorted(path.glob(f"*/bundle/{CONFIG}"), reverse=True)
    for folder in (path, path / "bundle", *(found.parent for found in newest)):
        config = folder / CONFIG
        if config.is_file():
            with config.open("rb") as stream:
                if b"parts:" in stream.read(MAX_YAML):  # a run has a config of this name, too
                    return folder
    where = f"there is no bundle at {path}"
    if path.parent.name == "runs":
        name = path.name
        raise BundleError(f"{where}: python -m ldm.train with +experiment={name} or name={name} makes it")
    raise BundleError(f"{where}; a finished run leaves one under runs/<experiment>/<run>/bundle")


def check_config(config: Fields) -> None:
    """Refuses a config that no bundle has, by the first wrong entry."""
    values = config.values
    if values.get("format") != FORMAT:
        raise UserError(f"it has format {values.get('format')}, this version reads {FORMAT}")
    parts = config.mapping("parts")
    for part in map(parts.mapping, parts.values):
        if not is_plain_name(part.text("file")):
            raise UserError(f"{part.name}: file={part.values['file']!r} is no file in the bundle's folder")
        part.text("sha256")
        check_tree({"spec": part.mapping("spec").values}, name=part.name)
    for name in values.keys() & {"process", "sampler", "guidance", "generator"}:
        check_tree(config.mapping(name).values, name=f"{config.name}: {name}")
    if values.get("size") is not None:
        config.whole("size", high=MAX_SIDE)
    if values.get("latents") is not None:
        config.mapping("latents").numbers("shift", low=-MAX_FLOAT, high=MAX_FLOAT)
        config.mapping("latents").numbers("scale", low=1 / MAX_FLOAT, high=MAX_FLOAT)
    if values.get("tokenizer") is not None:
        config.mapping("tokenizer").text("sha256")


def meta_network(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The network of a `_target_` tree on the meta device, with at most twice as many weights as a state has.

    Twice, because some networks tie two weights. Anybody may have written the tree: without the limit a
    forged one could take all time and memory before it is compared with the state.
    """
    with meta_init(most=2 * sum(max(1, tensor.numel()) for tensor in state.values())):
        return construct(spec)


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that only one of two states has, or that have different shapes in them."""
    shapes, others = ({name: tensor.shape for name, tensor in state.items()} for state in (one, other))
    return sorted(name for name in shapes.keys() | others if shapes.get(name) != others.get(name))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, floats in float32; BundleError for a cut one, NaN or Inf."""
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
    """Whether no value is NaN or Inf; the extremes tell, thirty times as fast as a test of each value."""
    return tensor.numel() == 0 or all(extreme.isfinite() for extreme in tensor.aminmax())


def tokenizer_of(content: Any, *, name: str) -> Tokenizer:
    """The tokenizer that plain data describes, which messages call `name`; UserError if it describes none."""
    try:
        fields = Fields.of(content, name=name)
        kind = locate(fields.choice("format", TOKENIZERS), allowed=("ldm.tokenizers.",))
        found: Tokenizer = kind.of(fields)
        return found
    except ValueError as error:  # Python's own where a line is no merge
        raise UserError(f"{name} is not a tokenizer of ldm ({error}): train or copy it again") from None


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file; UserError if there is none."""
    try:
        return tokenizer_of(read_json(path), name=str(path))
    except FileNotFoundError:
        raise UserError(f"there is no tokenizer at {path}: give the path of a tokenizer.json") from None
