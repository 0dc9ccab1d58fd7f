"""Servers of `ldm.serve` in processes of their own, and clients that send them requests."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.processes import descendants

PROMPTS = ("red apple", "owl", "sailboat", "fox", "snowman", "butterfly", "penguin", "birthday cake")
GENERATIONS = "/v1/images/generations"


@dataclass
class Row:
    """What came of a kind of load; `failures` are sentences, `says` what was measured."""

    name: str
    tries: int
    failures: list[str] = field(default_factory=list)
    says: str = ""

    def check(self, holds: bool, sentence: str) -> None:
        """Notes a failure unless something holds."""
        if not holds:
            self.failures.append(sentence)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: "subprocess.Popen[str]"
    address: str
    secret: Path  # a file beside its folder, which no answer may contain

    def client(self) -> httpx.Client:
        """A client without limits of its own."""
        limits = httpx.Limits(max_connections=None)
        return httpx.Client(base_url=self.address, timeout=600, limits=limits)

    def family(self) -> list[int]:
        """The processes: server and worker."""
        return [self.process.pid, *descendants(self.process.pid)]

    def resident(self) -> float:
        """MiB that they hold now."""
        return sum(status(pid, "VmRSS") for pid in self.family())

    def peak(self) -> float:
        """MiB that they held at most, each at its own time."""
        return sum(status(pid, "VmHWM") for pid in self.family())


def status(pid: int, name: str) -> float:
    """A line of /proc/<pid>/status in MiB; 0 for a process that is gone."""
    with suppress(OSError):
        found = re.search(rf"^{name}:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """`ldm.serve` in a process of its own, with its state in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    secret = folder / "secret.txt"
    secret.write_text("the secret")
    command = [sys.executable, "-m", "ldm.serve", "port=0", f"state={folder / 'state'}", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.match(r"open (http://\S+)/", process.stdout.readline())
    assert found is not None
    try:
        yield Server(process, found[1], secret)
    finally:
        process.kill()
        process.wait()


def asked(count: int, **fields: Any) -> list[dict[str, Any]]:
    """Requests of one picture each, with seeds of their own."""
    return [
        {"prompts": [PROMPTS[number % len(PROMPTS)]], "seeds": [number], **fields} for number in range(count)
    ]


def ended(client: httpx.Client, job: str) -> dict[str, Any]:
    """A job once it has ended."""
    with client.stream("GET", f"/v1/jobs/{job}/events") as events:
        for _ in events.iter_lines():  # until the server closes the stream
            pass
    return client.get(f"/v1/jobs/{job}").json()


def made(client: httpx.Client, request: dict[str, Any]) -> bytes:
    """The bytes of the picture of a request."""
    job = ended(client, client.post("/v1/generate", json=request).json()["id"])
    return client.get(f"/v1/pictures/{job['pictures'][0]}").content


def connected(server: Server) -> socket.socket:
    """A connection on which any bytes can be sent."""
    place = urlsplit(server.address)
    return socket.create_connection((place.hostname, place.port), timeout=60)


def request_of(method: str, path: str, body: bytes = b"", *, kind: str = "application/json") -> bytes:
    """The bytes of a request, whose path no client has tidied up."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    if body:
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def raw(server: Server, request: bytes) -> bytes:
    """All bytes that the server answers."""
    answer = bytearray()
    with connected(server) as line:
        line.sendall(request)
        with suppress(ConnectionResetError):
            while part := line.recv(2**16):
                answer += part
    return bytes(answer)


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
