"""Reads what a stranger may have written, within limits that keep it from exhausting memory or time.

Json and yaml are plain data: mappings with unique keys, lists, text that can be encoded, finite numbers. An
array must claim exactly the bytes of its file. Nothing is executed. Each reader raises UserError with file
and fault, and FileNotFoundError where there is no file. `ldm.io.fields` checks the values of a config.
"""

import errno
import hashlib
import io
import json
import math
import re
import tokenize
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ldm import UserError

MAX_JSON = 64 * 2**20  # bytes; the index of a million pictures has about as many
MAX_YAML = 2**18  # bytes, which take the parser some seconds; a bundle's config has 2**13
MAX_NESTING = 100
MAX_NODES = 100_000  # of a yaml document, an alias counted with all that it stands for
MAX_DIGITS = 32  # of a whole number
BROKEN = re.compile("[\0\ud800-\udfff]")

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def is_plain_name(name: object) -> bool:
    """Whether a name stands for a file in the folder in which it is looked up, and for no other place."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with _plain_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path, *, constants: Callable[[str], Any] = float) -> Any:
    """The value in a json file; `Infinity` and `NaN` are refused unless `constants` makes texts of them."""
    return parse_json(_bytes(path, most=MAX_JSON), name=str(path), constants=constants)


def parse_json(text: str | bytes, *, name: str, constants: Callable[[str], Any] = float) -> Any:
    """The value of a json text, which messages call `name`; otherwise as `read_json`."""
    with _checked(text, name, most=MAX_JSON):
        value = json.loads(text, object_pairs_hook=_mapping, parse_constant=constants)
        _check(value)
        return value


def read_yaml(path: Path) -> Any:
    """The value in a yaml file."""
    return parse_yaml(_bytes(path, most=MAX_YAML), name=str(path))


def parse_yaml(text: str | bytes, *, name: str) -> Any:
    """The value of a yaml text, which messages call `name`."""
    with _checked(text, name, most=MAX_YAML):
        loader = _Loader(text)
        node = loader.get_single_node()
        # aliases of aliases may stand for more entries than memory holds, but the tree of nodes shares them
        if node is not None and _size(node, {}) > MAX_NODES:
            raise UserError(f"it has more than {MAX_NODES} entries, or an alias that stands for itself")
        value = None if node is None else loader.construct_document(node)
        _check(value)
        return value


def parse_array(data: bytes, *, name: str) -> np.ndarray:
    """The array in the bytes of an npy file, which messages call `name`; pickled objects are refused."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise UserError(f"it has npy format {version}")
        shape, _, dtype = _HEADERS[version](stream)
        claimed, held = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
        if claimed != held:
            raise UserError(f"it claims {claimed} bytes and has {held}")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError) as error:
        raise UserError(f"{name} is no array of numbers ({error})") from error


def _plain_file(path: Path) -> io.BufferedReader:
    if not path.is_file():  # a pipe or a device may never end
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
    return path.open("rb")


def _bytes(path: Path, *, most: int) -> bytes:
    """The bytes of a file; of a longer one than `most`, one byte more, so that its length is refused."""
    with _plain_file(path) as stream:
        return stream.read(most + 1)


@contextmanager
def _checked(text: str | bytes, name: str, *, most: int) -> Iterator[None]:
    """Refuses a text that is too long, and turns what its parser raises into a sentence with its name."""
    try:
        if len(text) > most:
            raise UserError(f"it has more than {most} bytes")
        yield
    except RecursionError:
        raise UserError(f"{name}: it is nested more than {MAX_NESTING} deep") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: it is no json ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: it is no yaml ({' '.join(str(error).split())[:200]})") from None
    except ValueError as error:  # ours, or Python's of bytes that are no text
        raise UserError(f"{name}: {error}") from None


def _mapping(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping of pairs; refuses a key that comes twice, of which parsers would silently keep the last."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, Hashable):
            raise UserError(f"a key is a {type(key).__name__}")
        if key in found:
            raise UserError(f"the key {str(key)[:40]!r} comes twice: keep one of them")
        found[key] = value
    return found


def _check(value: Any, *, key: object = None, depth: int = 0) -> None:
    """Refuses what is no plain data of a sensible size; `key` is the innermost one that leads to it."""
    if depth == MAX_NESTING and isinstance(value, dict | list):
        raise RecursionError
    if isinstance(value, str):
        if BROKEN.search(value):  # json can write unpaired surrogates, which no file can hold
            raise UserError(f"{_place(key)}{value[:40]!r} contains an unpaired surrogate or a null byte")
    elif isinstance(value, dict):
        for name, each in value.items():
            _check(name, depth=depth + 1)
            _check(each, key=name, depth=depth + 1)
    elif isinstance(value, list):
        for each in value:
            if type(each) is not int or not 0 <= each < 2**63:  # an index is mostly these: saves their calls
                _check(each, key=key, depth=depth + 1)
    elif isinstance(value, int):
        if abs(value) >= 10**MAX_DIGITS:
            raise UserError(f"{_place(key)}{str(value)[:20]}... has more than {MAX_DIGITS} digits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{_place(key)}{value} is no finite number")
    elif value is not None:
        raise UserError(f"{_place(key)}{str(value)[:40]} is a {type(value).__name__}, which is no plain data")


def _place(key: object) -> str:
    return "" if key is None else f"{str(key)[:40]}="


class _Loader(yaml.SafeLoader):
    """A loader of plain data with unique keys, without merge keys (`<<`)."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """A node with those inside it; one that is nested too deep is refused before the rest is parsed."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise RecursionError
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leaves a mapping as it is written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; values may be filled in later, keys must be there to be compared."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        values = [self.construct_object(value, deep=deep) for _, value in node.value]
        return _mapping(list(zip(keys, values, strict=True)))


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Nodes in a tree, an alias counted as often as it is used; infinite where one stands for itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        inner = [each for pair in pairs for each in pair]
        inner += node.value if isinstance(node, yaml.SequenceNode) else []
        sizes[id(node)] = 1 + sum(_size(each, sizes) for each in inner)
    return sizes[id(node)]
