"""Fields of a config that a stranger may have written. Each is checked when it is read.

So no forged number reaches an allocation, and a message names the field.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.io.reading import read_json

MAX_WIDTH = 2**17  # of any one side of a weight; CLIP's vocabulary, the longest, has 49,408 rows
MAX_DEPTH = 128  # of any count of layers
MAX_FLOAT = 1e6  # of any option of a network, a process or a sampler


@dataclass(frozen=True)
class Fields:
    """A mapping, and the name that messages call it by; every reader raises UserError on a wrong value.

    A field that is missing or null has the reader's default; without a default it is refused.
    """

    name: str
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """The fields of a json file whose outermost value is a mapping."""
        try:
            # as a text: diffusers writes -Infinity as `lambda_min_clipped` of a DPMSolverMultistepScheduler
            values = read_json(path, constants=str)
        except FileNotFoundError:
            raise UserError(f"there is no {path}: fetch the folder again") from None
        return cls.of(values, name=str(path))

    @classmethod
    def of(cls, values: Any, *, name: str) -> "Fields":
        """The fields of a value that must be a mapping with names as keys."""
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise UserError(f"{name} holds a {type(values).__name__}, expected a mapping of names")
        return cls(name, values)

    def mapping(self, key: str, default: Mapping[str, Any] | None = None) -> "Fields":
        """The fields of a field."""
        return Fields.of(self._get(key, default), name=f"{self.name}: {key}")

    def text(self, key: str) -> str:
        """A text that is not empty."""
        return self._checked(key, None, lambda value: isinstance(value, str) and value != "", "a text")

    def texts(self, key: str) -> list[str]:
        """A list of texts, of any length."""
        return list(self._checked(key, None, _is_texts, "a list of texts"))

    def entries(self, key: str) -> list[Any]:
        """A list of anything; empty where the field is missing or null."""
        return list(self._checked(key, [], _is_list, "a list"))

    def numbers(self, key: str, *, low: float, high: float) -> list[float]:
        """A list of numbers in [low, high]."""
        values = self._checked(key, None, _is_list, "a list of numbers")
        return [float(Fields(self.name, {key: each}).number(key, low=low, high=high)) for each in values]

    def number(self, key: str, default: float | None = None, *, low: float, high: float) -> float:
        """A number in [low, high]."""
        return self._checked(key, default, _between(low, high), f"a number from {low:g} to {high:g}")

    def whole(self, key: str, default: int | None = None, *, low: int = 1, high: int) -> int:
        """A whole number in [low, high]."""
        return self._checked(key, default, _between(low, high, {int}), f"a whole number from {low} to {high}")

    def wholes(self, key: str, default: int | None = None, *, count: int, high: int) -> list[int]:
        """One whole number per level; a single one stands for `count` of them."""
        value = self._get(key, default)
        listed = list(value) if _is_list(value) else [value] * count
        if len(listed) != count:
            raise UserError(f"{self.name}: {key}={_short(value)} has {len(listed)} entries, expected {count}")
        return [Fields(self.name, {key: each}).whole(key, high=high) for each in listed]

    def names(self, key: str) -> list[str]:
        """A list of names, 1 to 16 of them."""
        wanted = "a list of 1 to 16 entries"
        values = self._checked(key, None, lambda value: _is_list(value) and 1 <= len(value) <= 16, wanted)
        return [str(each) for each in values]

    def choice(self, key: str, options: Mapping[Any, Any], default: Any = None) -> Any:
        """The value that `options` has under the field's."""
        value = self._get(key, default)
        if not isinstance(value, str | bool) or value not in options:
            known = ", ".join(str(option) for option in options)
            raise UserError(f"{self.name}: {key}={_short(value)} is not covered, only {known}")
        return options[value]

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value."""
        return self.choice(key, {True: True, False: False}, default)

    def only(self, fixed: Mapping[str, Any]) -> None:
        """Refuses a field whose value is not the one that our networks have; a missing field passes."""
        if wrong := [
            f"{key}={self.values[key]!r} (only {value!r})"
            for key, value in fixed.items()
            if key in self.values and not _same(self.values[key], value)
        ]:
            raise UserError(f"{self.name} is not covered by our networks: {', '.join(wrong)}")

    def known(self, names: set[str]) -> None:
        """Refuses a field that is none of `names`, unless it is off: null, false, or private (`_name`)."""
        if strange := [
            f"{key}={value!r}"
            for key, value in self.values.items()
            if key not in names and not key.startswith("_") and value not in (None, False)
        ]:
            raise UserError(f"{self.name} has options that our networks lack: {', '.join(sorted(strange))}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.name} lacks the field {key}: fetch the folder again")
        return value

    def _checked(self, key: str, default: Any, fits: Callable[[Any], bool], wanted: str) -> Any:
        value = self._get(key, default)
        if not fits(value):
            raise UserError(f"{self.name}: {key}={_short(value)} must be {wanted}")
        return value


def check_tree(tree: Any, *, name: str) -> None:
    """Refuses a number in a `_target_` tree that no option of ours takes, before the tree is built."""
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        high = MAX_WIDTH if isinstance(value, int) else MAX_FLOAT
        if isinstance(value, int | float) and not abs(value) <= high:
            raise UserError(f"{name}: {key}={_short(value)} must lie between -{high:g} and {high:g}")
        if isinstance(value, Mapping | list):
            check_tree(value, name=name)


def _between(low: float, high: float, kinds: Container[type] = (int, float)) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds and low <= value <= high


def _is_texts(value: Any) -> bool:
    return _is_list(value) and all(isinstance(each, str) for each in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _short(value: Any) -> str:
    """A value in at most 80 characters, for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _same(value: Any, expected: Any) -> bool:
    """Whether two values are equal and of one kind (1 is not true); null stands for false."""
    if isinstance(expected, bool):
        return value is expected or (value is None and not expected)
    return not isinstance(value, bool) and value == expected
