"""Samples out of tars from anywhere: streamed, never extracted, and nothing in them is run."""

import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby

import fsspec
from braceexpand import UnbalancedBracesError, braceexpand
from fsspec.utils import get_protocol

from ldm.data.index import DataError

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
MAX_MEMBER = 2**26  # bytes
LIST_SUFFIX = ".txt"
DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error)


def shard_urls(shards: str) -> list[str]:
    """The tars that a text stands for.

    Args:
        shards: a path or a URL that fsspec opens, with ranges in braces: `s3://set/{00000..00999}.tar`; or
            a file, by path or URL, that ends in .txt and lists one of those on each line.

    Raises:
        DataError: no tars, a kind of URL that fsspec can't open here, or `pipe:`, which elsewhere runs a
            command.
    """
    lines = [shards]
    if shards.endswith(LIST_SUFFIX):
        try:
            with fsspec.open(shards, "rt", encoding="utf-8") as stream:
                lines = stream.read().split("\n")
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"the list of shards {shards} can't be read ({error})") from error
    try:
        urls = [url for line in lines if line.strip() for url in braceexpand(line.strip())]
    except UnbalancedBracesError as error:
        raise DataError(f"shards {shards!r}: {error}") from error
    if not urls:
        raise DataError(f"{shards!r} names no shards: write paths or URLs of tars")
    refused = [url for url in urls if "pipe:" in url]
    if refused:
        raise DataError(
            f"shard {refused[0]!r}: pipe: would run a command; write a path or a URL such as s3://..."
        )
    for protocol, url in {get_protocol(url): url for url in urls}.items():
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            raise DataError(f"shard {url!r} can't be opened: {error}") from error
    return urls


def read_samples(url: str) -> Iterator[dict]:
    """Neighbouring members of one key together: `__key__`, `__url__`, and bytes by extension.

    Members that are no plain files, of other extensions or larger than `MAX_MEMBER` are passed over unread.

    Raises:
        DataError: when it comes to where the tar is damaged; the samples before have come.
    """
    try:
        for key, members in groupby(_members(url), key=lambda member: member[0]):
            sample: dict = {"__key__": key, "__url__": url}
            for _, extension, data in members:
                if extension in sample:
                    raise ValueError(f"it has {key}.{extension} twice")
                sample[extension] = data
            yield sample
    except DAMAGE as error:
        raise DataError(f"shard {url} is damaged or can't be read ({error})") from error


def _members(url: str) -> Iterator[tuple[str, str, bytes]]:
    with fsspec.open(url, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            tar.members = []  # type: ignore[misc]  # or all headers stay in memory
            folder, name = posixpath.split(member.name)
            stem, _, extension = name.partition(".")
            wanted = member.isreg() and not member.issparse() and extension.lower() in PICTURES + TEXTS
            if wanted and member.size <= MAX_MEMBER:
                yield posixpath.join(folder, stem), extension.lower(), tar.extractfile(member).read()
