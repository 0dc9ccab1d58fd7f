"""A bundle: all that sampling and evaluating need, as safetensors and yaml; reading one executes nothing.

```
bundle/config.yaml            parts with their constructors and hashes, latent statistics, process, defaults
bundle/<part>.safetensors     backbone, autoencoder, text_encoder, image_encoder: whichever a stage trained
bundle/tokenizer.json
bundle/README.md              model card; nothing reads it
```

Anybody may have written the folder, so every value is checked before something is built from it.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm import UserError
from ldm.construct import construct
from ldm.io.fields import MAX_FLOAT, MAX_WIDTH, Fields, check_tree
from ldm.io.reading import MAX_YAML, hash_file, is_plain_name, read_json, read_yaml
from ldm.models.meta_init import meta_init
from ldm.tokenizers import Tokenizer, parse_merge

FORMAT, TOKENIZER_FORMAT = 1, "ldm-tokenizer-1"
MAX_SIDE = 2**13  # of a picture, in pixels
# What torch and Python raise where a config describes no network. The config is foreign data, so none of
# these is a bug of ours that should show its traceback.
UNBUILDABLE = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)
CONFIG, TOKENIZER = "config.yaml", "tokenizer.json"
SIZES = ("vocab_size", "context_length", "pad_id")  # of a tokenizer
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
        with ThreadPoolExecutor(max_workers=1) as hashing:  # takes as long as looking at every weight
            checked = hashing.submit(self._checked, file, sha256)
            try:
                state = read_weights(self.path / file)
            finally:  # of two errors the hash's: a file that was changed is reported as that
                checked.result()
        return Part(spec=spec, state=state)

    def network(self, name: str) -> nn.Module:
        """One part, built and loaded, in evaluation mode.

        Raises:
            BundleError: the config describes no network, or not the one that the weights are of.
        """
        part = self.part(name)
        # Twice as many weights as the file has: some networks tie two. A config that asks for more would take
        # time and memory long before its weights were found not to fit.
        most = 2 * sum(max(1, tensor.numel()) for tensor in part.state.values())
        try:
            with meta_init(most=most):
                module = construct(part.spec)
            module.load_state_dict(part.state, assign=True)
        except UNBUILDABLE as error:
            raise BundleError(
                f"bundle {self.path}: the weights of {name} don't fit its config: {str(error)[:400]}"
            ) from error
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        return module.eval()

    def copy_into(self, net: nn.Module, name: str) -> None:
        """Copies the weights of one part into a network that is to be trained further.

        Raises:
            BundleError: no such part, a damaged one, or one of another network.
        """
        state = self.part(name).state
        sizes, wanted = ({key: x.shape for key, x in each.items()} for each in (state, net.state_dict()))
        different = sorted(key for key in sizes.keys() | wanted if sizes.get(key) != wanted.get(key))
        if different:
            raise BundleError(
                f"bundle {self.path}: its {name} and the network that is to start as it differ in "
                f"{len(different)} weights, such as {different[0]}: give both the same sizes"
            )
        net.load_state_dict(state)

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer.

        Raises:
            BundleError: it is missing or changed.
        """
        return load_tokenizer(self._checked(TOKENIZER, self.entry("tokenizer")["sha256"]))

    def _checked(self, file: str, sha256: str) -> Path:
        """The path of a file that is there and the one that was written.

        Raises:
            BundleError: it isn't.
        """
        path = self.path / file
        if not path.is_file():
            raise BundleError(f"bundle {self.path} lacks its file {file}: copy the whole folder again")
        if hash_file(path) != sha256:
            raise BundleError(f"bundle file {path} is damaged (sha256 differs): copy the whole folder again")
        return path


def find(path: Path) -> Path:
    """The bundle that a path means: itself, a run's, the newest of an experiment's runs; `shipped` is ours.

    Raises:
        BundleError: there is none.
    """
    path = SHIPPED if path == Path("shipped") else path
    newest = sorted(path.glob(f"*/bundle/{CONFIG}"), reverse=True)
    for folder in (path, path / "bundle", *(found.parent for found in newest)):
        config = folder / CONFIG
        if config.is_file():
            with config.open("rb") as stream:
                if b"parts:" in stream.read(MAX_YAML):  # else it is a run's config
                    return folder
    where = f"there is no bundle at {path}"
    if path.parent.name == "runs":
        raise BundleError(f"{where}: python -m ldm.train +experiment={path.name} leaves one there")
    raise BundleError(f"{where}; a finished run leaves one under runs/<experiment>/<run>/bundle")


def check_config(config: Fields) -> None:
    """Refuses what no bundle's config holds, before anything is built from it.

    Raises:
        UserError: the entry, and what is wrong with it.
    """
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, those with fractions in float32.

    Raises:
        BundleError: it is cut or forged, or holds NaN or Inf.
        FileNotFoundError: there is no such file.
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
    """Whether no value is NaN or Inf, read off the extremes: thirty times as fast as looking at each."""
    return tensor.numel() == 0 or all(extreme.isfinite() for extreme in tensor.aminmax())


def content_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer as plain data, from which `tokenizer_of` makes the same one."""
    sizes = {name: getattr(tokenizer, name) for name in SIZES}
    return {"format": TOKENIZER_FORMAT, **sizes, "merges": [" ".join(merge) for merge in tokenizer.merges]}


def tokenizer_of(content: Any, *, name: str) -> Tokenizer:
    """The tokenizer that plain data describes, which messages call by `name`.

    Raises:
        UserError: the data describes none.
    """
    try:
        fields = Fields.of(content, name=name)
        if fields.text("format") != TOKENIZER_FORMAT:
            raise UserError(f"format {fields.text('format')!r} is not {TOKENIZER_FORMAT!r}")
        sizes = {each: fields.whole(each, low=0, high=MAX_WIDTH) for each in SIZES}
        return Tokenizer([parse_merge(line) for line in fields.texts("merges")], **sizes)
    except ValueError as error:  # Python's own where a line is no merge
        raise UserError(
            f"{name} is not a tokenizer written by ldm ({error}): train or copy it again"
        ) from None


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file.

    Raises:
        UserError: no file, or one that ldm did not write.
    """
    try:
        return tokenizer_of(read_json(path), name=str(path))
    except FileNotFoundError:
        raise UserError(f"there is no tokenizer at {path}: give the path of a tokenizer.json") from None
