"""Addresses of data: paths of this machine and URLs of the protocols on a list, opened to be read.

fsspec can open more than that. `reference://` renders the templates of the file that it is given, which in
some releases runs any code in it and in others sends the environment to a server; `::` joins one protocol to
another. A list of shards may come from a stranger, so neither is opened.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec
from fsspec.core import split_protocol

from ldm.data.index import DataError

LOCAL = ("file", "local", "memory")  # this machine, and this process
REMOTE = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")  # servers of objects, each read as bytes


def check_address(url: str) -> None:
    """Refuses an address that is neither a path nor a URL of a protocol on the list.

    Raises:
        DataError: the address and its protocol, or the package that the protocol needs.
    """
    protocol = split_protocol(url)[0] or "file"
    if "::" in url or protocol not in LOCAL + REMOTE or url.startswith("pipe:"):
        known = ", ".join(f"{name}://" for name in REMOTE)
        raise DataError(f"{url[:200]!r} is refused: data are read from paths and from {known} alone")
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url[:200]!r} can't be opened: {error}") from error


def is_local(url: str) -> bool:
    """Whether an address means a file of this machine."""
    return (split_protocol(url)[0] or "file") in LOCAL


@contextmanager
def open_address(url: str) -> Iterator["Transport"]:
    """The bytes behind an address.

    Raises:
        DataError: an address that is refused.
        OSError: whatever stops the transport, when it is opened or read.
    """
    check_address(url)
    transport = Transport(url)
    try:
        yield transport
    finally:
        transport.close()


class Transport:
    """A stream to read, whose client's own errors (aiohttp's, botocore's, ...) come as OSErrors.

    Each protocol has a client of its own, and none of them promises what it raises: nothing but the client
    runs inside these calls.
    """

    def __init__(self, url: str) -> None:
        self.stream: IO[bytes] = self._answered(lambda: fsspec.open(url, "rb").open())

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; all that are left if it is negative."""
        return self._answered(lambda: self.stream.read(size))

    def close(self) -> None:
        """Ends the transfer."""
        self._answered(self.stream.close)

    @staticmethod
    def _answered(call: Any) -> Any:
        try:
            return call()
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
