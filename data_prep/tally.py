"""What was left out, by reason and name, and what was changed, by kind: the memory of a preparation."""

from collections import Counter
from dataclasses import dataclass, field

Ledger = dict[str, list[str]]  # reason -> names


class LeftOut(Exception):
    """A picture or caption that can't be used; the message is the reason, one of a few."""


@dataclass
class Tally:
    """One ledger for each thing that can happen.

    Attributes:
        pictures: left out, by reason: names of pictures.
        captions: left out, by reason: `picture#number`.
        healed: kept after mending, by kind: `picture#number`, or the place in a file.
        converted: pictures stored otherwise than they were found, by kind.
        long_captions: captions kept that CLIP's 77 tokens don't hold.
    """

    pictures: Ledger = field(default_factory=dict)
    captions: Ledger = field(default_factory=dict)
    healed: Ledger = field(default_factory=dict)
    converted: dict[str, int] = field(default_factory=dict)
    long_captions: int = 0

    def leave_picture(self, reason: str, name: str) -> None:
        """Notes a picture that is left out."""
        self.pictures.setdefault(reason, []).append(name)

    def leave_caption(self, reason: str, name: str) -> None:
        """Notes a caption that is left out."""
        self.captions.setdefault(reason, []).append(name)

    def heal(self, kind: str, name: str) -> None:
        """Notes a caption that was mended."""
        self.healed.setdefault(kind, []).append(name)

    def add(self, other: "Tally") -> None:
        """Takes over all that another one noted."""
        for title in ("pictures", "captions", "healed"):
            own = getattr(self, title)
            for reason, names in getattr(other, title).items():
                own.setdefault(reason, []).extend(names)
        self.converted = dict(Counter(self.converted) + Counter(other.converted))
        self.long_captions += other.long_captions


def counts(ledger: Ledger) -> dict[str, int]:
    """How many names stand under each reason, the largest first."""
    numbers = {reason: len(ledger[reason]) for reason in sorted(ledger)}
    return dict(sorted(numbers.items(), key=lambda item: -item[1]))


def total(ledger: Ledger) -> int:
    """How many names a ledger holds."""
    return sum(map(len, ledger.values()))
