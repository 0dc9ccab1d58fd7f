"""CLIP's tokenizer of ours against open_clip's and transformers': the same ids for the same strings.

    python -m benchmarks.tokenizer_identity --captions results_20130124.token [--fuzz 10000] [--seed 0]

Every line of the file (a name before a tab is no caption; .gz is unpacked) and seeded strings of what prompts
are made of at their worst. Prints how many strings get other ids, and why. The vocabulary is CLIP's own, from
the open-clip-torch wheel or from `--vocabulary bpe_simple_vocab_16e6.txt.gz`.

Ours does what CLIP's own code does, and so does open_clip: texts are mended with ftfy and html.unescape, and
words are split regardless of case. transformers 5 composes (NFC) and lowers a text, and no more: it is asked
twice, with the string as it is and with what ours makes of it first, which leaves the byte pairs to compare.
"""

import argparse
import gzip
import logging
import random
import sys
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import regex
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from ldm.exchange.folder import write_vocabulary
from ldm.tokenizers import Tokenizer, clean
from ldm.tokenizers.clip_vocabulary import clip_bpe

CHUNK = 5_000  # strings that are compared at a time
CONTEXT, END = 77, 49_407
CONTROL = ("<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>")

SHOWN = 5  # strings that differ for no known reason

Row = list[int]
Piece = Callable[[random.Random], str]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another tokenizer, and what a string becomes before it is given to it."""

    encode: Callable[[list[str]], list[Row]]
    given: Callable[[str], str] = str


def captions(path: Path) -> list[str]:
    """The captions in a file, one a line."""
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n").rpartition("\t")[2] for line in lines]


def some(*choices: str) -> Piece:
    """One of some strings."""
    return lambda draw: draw.choice(choices)


def characters(first: int, last: int, *, most: int = 6) -> Piece:
    """A few characters of a range of Unicode, assigned or not."""
    return lambda draw: "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, most)))


PIECES: list[Piece] = [
    some("a", "red", "It's", "DON'T", "we'll", "dog", "People", "standing", "3.14", "1,000", "x2"),
    some(
        "&amp;", "&amp;amp;", "&lt;b&gt;", "&#39;", "&#x1F34E;", "&eacute;", "&nbsp;", "&bogus;", "&#0;", "&"
    ),
    some(
        " ", "  ", "\t", "\n", "\r\n", "\v\f", "\x1c", "\x85", "\xa0", "\u2003", "\u2028", "\u200b", "\ufeff"
    ),
    some(
        "'s", "'S", "'\u017f", "'ll", "\u2019t", "\u201cquoted\u201d", "``", "...", "\u2026", "--", "\u2014"
    ),
    some(
        "\u00e2\u20ac\u0153",
        "na\u00c3\u00afve",
        "\u00c3\u00a9",
        "\ufb01sh",
        "\uff21\uff22",
        "\u0130",
        "\u01c5",
        "\u1e9e",
    ),
    some(
        "\U0001f34e",
        "\U0001f469\u200d\U0001f680",
        "\U0001f1eb\U0001f1f7",
        "\u2764\ufe0f",
        "\U0001f44d\U0001f3fd",
    ),
    some(
        "e\u0301",
        "a\u030a\u0323",
        "\u1112\u1161\u11ab",
        "\u0e01\u0e33",
        "\u0915\u094d\u0937",
        "\u2126",
        "\u212b",
    ),
    some(
        "<b>",
        "</w>",
        "${oc.env:HOME}",
        "{}",
        "%s",
        "\\n",
        "a_b",
        "#tag",
        "@you",
        "\u00bd",
        "\u00b2",
        "\u2167",
    ),
    characters(0x00, 0x1F),
    characters(0x20, 0x7E, most=12),
    characters(0x7F, 0x24F),
    characters(0x250, 0x1FFF),
    characters(0x2000, 0xD7FF),
    characters(0xE000, 0xFFFD),
    characters(0x10000, 0x10FFFF, most=3),
    lambda draw: draw.choice("aZ\u00e9\u65e5") * draw.randint(50, 400),
]


def fuzzed(count: int, *, seed: int) -> list[str]:
    """Strings of up to a dozen pieces, with and without spaces between them."""
    draw = random.Random(seed)
    return [
        draw.choice(("", " ")).join(draw.choice(PIECES)(draw) for _ in range(draw.randint(0, 12)))
        for _ in range(count)
    ]


def peers(ours: Tokenizer, folder: Path, *, vocabulary: Path | None) -> dict[str, Peer]:
    """What is compared with, padded as ours is."""
    given = {} if vocabulary is None else {"bpe_path": str(vocabulary)}
    simple = SimpleTokenizer(context_length=CONTEXT, **given)
    write_vocabulary(ours, folder / "vocabulary")
    theirs = CLIPTokenizer.from_pretrained(folder / "vocabulary")

    def open_clip(texts: list[str]) -> list[Row]:
        ids = [[ours.start_id, *simple.encode(text)[: CONTEXT - 2], END] for text in texts]
        return [row + [END] * (CONTEXT - len(row)) for row in ids]

    def transformers(texts: list[str]) -> list[Row]:
        rows: list[Row] = theirs(
            texts, padding="max_length", max_length=CONTEXT, truncation=True, return_attention_mask=False
        )["input_ids"]
        return rows

    return {
        "open_clip": Peer(encode=open_clip),
        "transformers": Peer(encode=transformers),
        "transformers, cleaned": Peer(encode=transformers, given=clean),
    }


def kind(text: str) -> str:
    """Why transformers may give a text other ids."""
    cleaned = clean(text)
    if any(word in cleaned for word in CONTROL):
        return "spells a control token"
    if cleaned != regex.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip(" ").lower():
        return "cleaned otherwise"
    if "'\u017f" in cleaned:
        return "'\u017f for 's"
    if any(unicodedata.category(letter) == "Cn" for letter in cleaned):
        return "letter of a later Unicode"
    if "\u0345" in cleaned:
        return "iota below a letter"
    return "unknown"


def different(ours: Tokenizer, peer: Peer, texts: Sequence[str]) -> Iterator[str]:
    """The texts, as the peer is given them, that get other ids."""
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        given = [peer.given(text) for text in chunk]
        rows = zip(given, ours.encode(chunk).tolist(), peer.encode(given), strict=True)
        yield from (text for text, own, other in rows if own != other)


def compare(ours: Tokenizer, name: str, peer: Peer, sets: Mapping[str, Sequence[str]]) -> int:
    """Prints a row for each set of strings; returns how many differ for no known reason."""
    unknown = 0
    for source, texts in sets.items():
        kinds: dict[str, list[str]] = defaultdict(list)
        for text in different(ours, peer, texts):
            kinds[kind(text)].append(text)
        told = ", ".join(f"{len(found)} {why}" for why, found in kinds.items())
        print(
            f"{name:22} {source:9} {len(texts):>7} strings, {sum(map(len, kinds.values())):>5} differ  {told}"
        )
        for text in kinds["unknown"][:SHOWN]:
            print(f"  {text!r}")
        unknown += len(kinds["unknown"])
    return unknown


def main() -> int:
    """Prints the table; 1 if anything but what `kind` names makes a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=Path, help="a file of captions, one a line")
    parser.add_argument("--vocabulary", type=Path, help="CLIP's merges; by default the wheel's")
    parser.add_argument("--fuzz", type=int, default=10_000, help="how many strings are made up")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    ours = clip_bpe(options.vocabulary, pad_id=END)
    sets = {"made up": fuzzed(options.fuzz, seed=options.seed)}
    if options.captions is not None:
        sets = {"captions": captions(options.captions), **sets}
    with tempfile.TemporaryDirectory() as folder:
        compared = peers(ours, Path(folder), vocabulary=options.vocabulary).items()
        return int(sum(compare(ours, name, peer, sets) for name, peer in compared) > 0)


if __name__ == "__main__":
    sys.exit(main())
