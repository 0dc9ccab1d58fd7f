"""Samples out of tars from anywhere: streamed, never extracted, and nothing in them is run; their captions.

A list of shards may come from a stranger, so only paths and URLs of listed protocols are opened. fsspec knows
more: `reference://` renders templates, which in some releases runs any code in them and in others sends the
environment to a server, and `::` joins protocols.
"""

import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import chain, groupby, islice
from math import prod
from typing import IO, NamedTuple, TypeVar

import fsspec
from braceexpand import UnbalancedBracesError, braceexpand
from fsspec.core import split_protocol

from ldm import UserError
from ldm.data import DataError
from ldm.data.decode import MAX_BYTES
from ldm.data.picture_files import SUFFIXES, is_hidden
from ldm.data.shards import is_plain
from ldm.data.texts import SURROGATE, decode, numbered_lines

PICTURES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
TEXTS = ("txt", "json")
FIRST_DOT = "a key ends at the first dot"
LIST_SUFFIX = ".txt"
MOST = 10**6  # shards; LAION-5B has 232,000
INNERMOST, RANGE = re.compile(r"\{([^{}]*)\}"), re.compile(r"(-?\d+)\.\.(-?\d+)")
HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
MAX_HEADER = 2**20  # bytes
MOST_UNPACKED = 200  # bytes of one byte of a compressed tar; pictures give one, texts and masks some tens
DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error)
LOCAL = ("file", "local", "memory")  # this machine, and this process
REMOTE = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")  # servers of objects, each read as bytes
CONTROL = re.compile("\r\n|[\x01-\x1f\x7f-\x9f]")
MAX_CHARACTERS = 10_000  # of a caption; rules in docs/data_rules.md
Answer = TypeVar("Answer")


def shard_urls(shards: str) -> list[str]:
    """The tars of a path or URL with ranges in braces, as `s3://set/{00000..00999}.tar`.

    It may also name a file that ends in .txt and lists one of those on each line. Raises DataError: no tars,
    an address that is refused or can't be opened here, or a list on a server with files of this machine.
    """
    lines = _listed(shards) if shards.endswith(LIST_SUFFIX) else [shards]
    named = chain.from_iterable(expanded(line.strip()) for line in lines if line.strip())
    urls = list(islice(named, MOST + 1))
    if len(urls) > MOST:
        raise DataError(f"{shards!r} names more than {MOST:,} shards: list those that are there")
    if not urls:
        raise DataError(f"{shards!r} names no shards: write paths or URLs of tars")
    for url in urls:
        check_address(url)
        # a list from a server could else have this machine read files that only its user may see
        if _protocol(url) in LOCAL and _protocol(shards) not in LOCAL:
            raise DataError(f"the list {shards} names {url!r}, a file of this machine: write URLs in it")
    return urls


def expanded(line: str) -> Iterator[str]:
    """The addresses that a line with braces names. Raises DataError: too many, or braces that don't pair up.

    They are counted before the first is made: a short line can name more than memory holds.
    """
    most = prod(map(_choices, INNERMOST.findall(line)))
    outer = INNERMOST.sub("", line)
    if "{" in outer:  # braces in braces: each comma at most doubles the number
        most *= 2.0 ** outer.count(",")
    if not most <= MOST:
        raise DataError(f"shards {line[:200]!r}: its braces stand for more than {MOST:,} shards")
    try:
        return braceexpand(line)
    except UnbalancedBracesError as error:
        raise DataError(f"shards {line[:200]!r}: {error}") from error


def _choices(group: str) -> float:
    match = RANGE.match(group)
    return abs(float(match[1]) - float(match[2])) + 1 if match else group.count(",") + 1


def _listed(path: str) -> list[str]:
    try:
        with closing(Transport(path)) as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise DataError(f"the list of shards {path} has more than {MAX_BYTES} bytes: it is no list")
        return [line for _, line in numbered_lines(data.decode("utf-8-sig"))]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list of shards {path} can't be read ({error})") from error


def check_address(url: str) -> None:
    """Refuses an address that is neither a path nor a URL of a protocol on the list.

    Raises DataError: the address and its protocol, or the package that the protocol needs.
    """
    protocol = _protocol(url)
    if "::" in url or protocol not in LOCAL + REMOTE or url.startswith("pipe:"):
        known = ", ".join(f"{name}://" for name in REMOTE)
        raise DataError(f"{url[:200]!r} is refused: data are read from paths and from {known} alone")
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url[:200]!r} can't be opened: {error}") from error


def _protocol(url: str) -> str:
    return split_protocol(url)[0] or "file"


class Transport:
    """The bytes behind an address; its client's own errors (aiohttp's, botocore's, ...) come as OSErrors.

    Raises DataError: an address that is refused. OSError: whatever stops the transport, opened or read.
    """

    taken = 0  # bytes that were read

    def __init__(self, url: str) -> None:
        check_address(url)
        self.stream: IO[bytes] = self._answered(lambda: fsspec.open(url, "rb").open())

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; all that are left if it is negative."""
        data = self._answered(lambda: self.stream.read(size))
        self.taken += len(data)
        return data

    def close(self) -> None:
        """Ends the transfer."""
        self._answered(self.stream.close)

    @staticmethod
    def _answered(call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except OSError:
            raise
        except Exception as error:  # no client promises what it raises, and nothing else runs in here
            raise OSError(f"{type(error).__name__}: {error}") from error


def read_samples(url: str) -> Iterator[dict]:
    """Neighbouring members of one key together: `__key__`, `__url__`, and bytes by extension.

    Members that are hidden, no plain files, of other extensions or larger than `MAX_BYTES` are not read.
    Raises DataError: the tar is damaged or unpacks without end, after all samples before that place.
    """
    try:
        for key, members in groupby(_members(url), key=lambda member: member[0]):
            sample: dict = {"__key__": key, "__url__": url}
            for _, extension, data in members:
                if extension in sample:
                    raise UserError(f"it has {key}.{extension} twice")
                sample[extension] = data
            yield sample
    except DAMAGE as error:
        raise DataError(f"shard {url} is damaged or can't be read ({error})") from error


def part_of(name: str) -> tuple[str, str] | None:
    """(key of the sample, extension) of a member by its name; None for hidden files and other extensions."""
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    if is_hidden(name) or extension.lower() not in PICTURES + TEXTS:
        return None
    return posixpath.join(folder, stem), extension.lower()


def beyond_first_dot(name: str) -> tuple[str, str] | None:
    """(key, sentence) of a picture that is in no sample, as a key ends at the first dot; else None."""
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    if is_hidden(name) or "." not in extension or extension.rpartition(".")[2].lower() not in PICTURES:
        return None
    return posixpath.join(folder, stem), f"{base} is part {extension!r} of {stem!r}"


def _members(url: str) -> Iterator[tuple[str, str, bytes]]:
    """(key, extension, bytes) of each member that belongs to a sample."""
    empty, dotted = True, None
    with closing(Transport(url)) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar:
        for member in tar:
            tar.members = []  # type: ignore[misc]  # or all headers stay in memory
            if tar.fileobj.comptype != "tar":
                _check_unpacked(member, taken=stream.taken)
            part = part_of(member.name)
            dotted = dotted or beyond_first_dot(member.name)
            if part and is_plain(member) and member.size <= MAX_BYTES:
                empty = False
                yield *part, tar.extractfile(member).read()
    if empty and dotted:
        raise DataError(f"{FIRST_DOT}: {dotted[1]}")


def _check_unpacked(member: tarfile.TarInfo, *, taken: int) -> None:
    """Refuses a compressed tar that unpacks without end; `taken` of its bytes were read up to this member."""
    if member.size > MAX_BYTES or member.offset > MOST_UNPACKED * taken + MAX_BYTES:
        raise tarfile.ReadError(
            f"{taken} compressed bytes unpack to {member.offset + member.size} and more, of a member"
            f" {member.name[:80]!r}: leave out what is no sample, or don't compress the tar"
        )


class _Member(tarfile.TarInfo):
    """A member whose long name or extended header, which tarfile reads into memory whole, is short."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header in it claims {self.size} bytes")
        return super()._proc_member(archive)


class UnusableCaption(UserError):
    """A caption that is left out; the message is the reason, one of those in docs/data_rules.md."""


class Caption(NamedTuple):
    """A caption as it is stored, and what was changed in it, in words."""

    text: str
    healed: list[str]


def usable_caption(text: object) -> Caption:
    """Applies the rules to one caption. Raises UnusableCaption: it is left out."""
    if not isinstance(text, str):
        raise UnusableCaption("not a text")
    if SURROGATE.search(text):
        raise UnusableCaption("not UTF-8")
    if "\0" in text:
        raise UnusableCaption("NUL")
    healed = []
    text = text.strip()
    if CONTROL.search(text):
        healed.append("control characters")
        text = CONTROL.sub(" ", text).strip()
    if not text:
        raise UnusableCaption("blank")
    if len(text) > MAX_CHARACTERS:
        healed.append(f"cut at {MAX_CHARACTERS} characters")
        text = text[:MAX_CHARACTERS].rstrip()
    return Caption(text, healed)


def sample_captions(members: Mapping[str, bytes]) -> list[tuple[int, object]]:
    """(number from 0, caption) of each caption in a sample's `json` or `txt`, not judged yet."""
    try:
        # not parse_json: one odd caption or number in it is left out alone, not the whole record
        record = json.loads(decode(members.get("json", b"")))
    except (ValueError, RecursionError):
        record = {}
    record = record if isinstance(record, dict) else {}
    texts, numbers = record.get("texts"), record.get("comment_nos")
    if isinstance(texts, list) and texts:
        is_numbered = isinstance(numbers, list) and all(type(each) is int and each >= 0 for each in numbers)
        if not is_numbered or len(numbers) != len(texts):
            numbers = range(len(texts))
        return list(zip(numbers, texts, strict=True))
    if "txt" in members:
        return [(0, decode(members["txt"]))]
    return [(0, record["caption"])] if "caption" in record else []
