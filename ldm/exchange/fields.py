"""Fields of a foreign config, each checked as it is read: a forged number costs a sentence, not memory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Choice = TypeVar("Choice")

MAX_BYTES = 64 * 2**20  # of a json file; CLIP's vocabulary, the largest one read, takes 1 MB
MAX_WIDTH = 2**17  # of any one side of a weight; CLIP's vocabulary, the longest, has 49,408 rows
MAX_DEPTH = 128  # of any count of layers


@dataclass(frozen=True)
class Fields:
    """A mapping with the name to call it by in sentences; every reader raises ValueError on a wrong value."""

    name: str
    values: Mapping[str, Any]

    def number(self, key: str, default: float | None = None, *, low: float, high: float) -> float:
        """A number in [low, high]; where the field is missing or null, `default`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{self.name}: {key}={value!r} must be a number from {low:g} to {high:g}")
        return value

    def whole(self, key: str, default: int | None = None, *, low: int = 1, high: int) -> int:
        """A whole number in [low, high]."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{self.name}: {key}={value!r} must be a whole number from {low} to {high}")
        return value

    def wholes(self, key: str, default: int | None = None, *, count: int, high: int) -> list[int]:
        """One whole number per level; a single one stands for `count` of them."""
        value = self._get(key, default)
        listed = list(value) if isinstance(value, list | tuple) else [value] * count
        if len(listed) != count:
            raise ValueError(f"{self.name}: {key}={value!r} has {len(listed)} entries, expected {count}")
        return [Fields(self.name, {key: each}).whole(key, high=high) for each in listed]

    def names(self, key: str) -> list[str]:
        """A list of names, 1 to 16 of them."""
        value = self._get(key, None)
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= 16:
            raise ValueError(f"{self.name}: {key}={value!r} must be a list of 1 to 16 entries")
        return [str(each) for each in value]

    def choice(self, key: str, options: Mapping[Any, Choice], default: Any = None) -> Choice:
        """What `options` has for the field."""
        value = self._get(key, default)
        if not isinstance(value, str | bool) or value not in options:
            known = ", ".join(str(option) for option in options)
            raise ValueError(f"{self.name}: {key}={value!r} is not covered, only {known}")
        return options[value]

    def only(self, fixed: Mapping[str, Any]) -> None:
        """Refuses every field whose value is not the one that our networks have; a missing field passes."""
        wrong = [
            f"{key}={self.values[key]!r} (only {value!r})"
            for key, value in fixed.items()
            if key in self.values and not _same(self.values[key], value)
        ]
        if wrong:
            raise ValueError(f"{self.name} is not covered by our networks: {', '.join(wrong)}")

    def known(self, names: set[str]) -> None:
        """Refuses a field that is none of `names`, unless it is off: null, false, or private (`_name`)."""
        strange = [
            f"{key}={value!r}"
            for key, value in self.values.items()
            if key not in names and not key.startswith("_") and value not in (None, False)
        ]
        if strange:
            raise ValueError(f"{self.name} asks for what our networks lack: {', '.join(sorted(strange))}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"{self.name} lacks the field {key}: fetch the folder again")
        return value


def read_json(path: Path) -> Fields:
    """A json file whose outermost value is a mapping.

    Raises:
        ValueError: it is not there, too large, or anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} is larger than {MAX_BYTES} bytes: it is no config")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: fetch the folder again") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not json ({type(error).__name__}): fetch it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a mapping: fetch it again")
    return Fields(str(path), values)


def _same(value: Any, expected: Any) -> bool:
    """Equal, and both or neither a truth value; null stands for false."""
    if isinstance(expected, bool):
        return value is expected or (value is None and not expected)
    return not isinstance(value, bool) and value == expected
