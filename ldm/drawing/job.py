"""One picture to draw, checked before anything heavy loads."""

import math
from dataclasses import dataclass
from pathlib import Path

from ldm import UserError
from ldm.randomness.seeds import check_seed

PROMPT_LIMIT = 10_000  # characters; a CLIP text encoder reads about 300
NAME_LIMIT = 100
FROM_PICTURE, INTO_MASK = 0.6, 1.0  # strength where none is said
TAKEN = ("sheet", "pictures")  # names of what lies beside the pictures


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that is said of one picture; whatever is null is the command's or the bundle's.

    Attributes:
        name: of its file, without `.png`.
        scale: of the guidance.
        image: the picture that drawing starts from.
        mask: of the same size, light where `image` is redrawn.
        strength: how much of `image` is drawn anew, 0 to 1.

    Raises:
        UserError: a field that can't be, by its name.
    """

    prompt: str
    seed: int
    name: str
    negative: str = ""
    scale: float | None = None
    image: Path | None = None
    mask: Path | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        if not self.prompt.strip():
            raise UserError(f"prompt {self.prompt!r} holds no text: write one or more words")
        check_text("negative", self.negative)
        check_name(self.name)
        check_seed(self.seed)
        if self.scale is not None and not (is_number(self.scale) and math.isfinite(self.scale)):
            raise UserError(f"scale={self.scale} must be a finite number")
        if self.image is None and (self.mask or self.strength is not None):
            raise UserError("mask and strength go with a picture to start from: name it with image=<file>")
        for field in ("image", "mask"):
            file = getattr(self, field)
            if file is not None and not file.is_file():
                raise UserError(f"{field}={file} is not there: name a PNG, JPEG or WebP file")
        if self.strength is not None and not (is_number(self.strength) and 0 <= self.strength <= 1):
            raise UserError(f"strength={self.strength} must lie in [0, 1]: 0 keeps the picture, 1 redraws it")

    @property
    def drawn_strength(self) -> float:
        """The strength that is used."""
        if self.strength is not None:
            return self.strength
        return FROM_PICTURE if self.mask is None else INTO_MASK


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_text(field: str, text: object) -> None:
    """Refuses what is no text that can be encoded and written, or too long.

    Raises:
        UserError: the field and what is wrong.
    """
    if not isinstance(text, str):
        raise UserError(f"{field} {text!r} holds no text: write one or more words")
    if len(text) > PROMPT_LIMIT:
        raise UserError(f"a {field} of {len(text)} characters is too long: the limit is {PROMPT_LIMIT}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{field} {text[:40]!r} holds half a character at {error.start}: write it whole"
        ) from error


def check_name(name: str) -> None:
    """Refuses a name that is not one of a plain file in the output folder.

    Raises:
        UserError: the name.
    """
    plain = name.strip() == name and name.isprintable() and not set(name) & set('/\\:*?"<>|')
    if not plain or not name or name.startswith(".") or name in TAKEN:
        raise UserError(f"name={name!r} can't be a file's: take letters, digits, - and _, without folders")
    if len(name.encode()) > NAME_LIMIT:
        raise UserError(f"a name of {len(name.encode())} bytes is too long: the limit is {NAME_LIMIT}")
