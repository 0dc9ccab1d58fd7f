"""A local page and an HTTP API that generate pictures: `python -m ldm.serve`."""

import os
import re
import secrets
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm import UserError
from ldm.config import entry, plain

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = (
    "LDM_TOKEN"  # environment variable, which other users of the machine can't read, as they can a command
)


@entry("serve")
def main(config: DictConfig) -> None:
    """Serves until it is interrupted."""
    options = plain(config)
    check_options(options)
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"ldm.serve needs {error.name}: pip install 'ldm[serve]', or make setup") from error

    from ldm.serve.app import create_app, run
    from ldm.serve.history import History
    from ldm.serve.networks import Networks
    from ldm.serve.service import Service

    host, token = options["host"], token_of(options)
    with (
        closing(listen(host, options["port"])) as listening,
        closing(History(Path(options["state"]))) as history,
        closing(Networks(named(bundles_of(options)), chunk=options["chunk"])) as networks,
        closing(Service(networks, history, limit=options["queue"], examples=options["examples"])) as service,
    ):
        app = create_app(service, host=host, token=token, runs=Path(options["runs"]))
        port = listening.getsockname()[1]
        print(f"open {address(host, port, token)}    Ctrl-C ends the server", flush=True)
        run(app, service, listening)


def check_options(options: dict[str, Any]) -> None:
    """Refuses a value that can't be used, before anything is loaded; raises UserError with its key."""
    for name, high in (("queue", 100_000), ("chunk", 256)):
        value = options[name]
        if value is not None and not (type(value) is int and 1 <= value <= high):
            raise UserError(f"{name}={value} must be a whole number from 1 to {high:,}")
    for name in ("bundles", "examples"):
        value = options[name] or []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise UserError(f"{name}={value} is no list of texts: write '{name}=[a,b]'")


def bundles_of(options: dict[str, Any]) -> list[str]:
    """The paths of the bundles, each once; the first one is the default."""
    return list(dict.fromkeys(options["bundles"] or [options["bundle"]]))


def token_of(options: dict[str, Any]) -> str | None:
    """The token that requests must have; raises UserError where there must be one and is none."""
    token = options["token"] or os.environ.get(TOKEN)
    if token is None and options["host"] not in LOOPBACK:
        suggested = secrets.token_urlsafe(24)
        raise UserError(
            f"host={options['host']} lets other machines in, so that a token is needed: set the environment"
            f" variable {TOKEN}={suggested}, or leave host out"
        )
    if token is not None and not re.fullmatch(r"[\w.~-]{16,200}", token, re.ASCII):
        raise UserError("the token must have 16 to 200 characters: letters, digits, _ . ~ and -")
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; raises UserError for an address that is taken, or not this machine's."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"port={port} at host={host} can't be used ({reason}): take another port") from error
    return listening


def named(bundles: list[str]) -> dict[str, str]:
    """Paths of bundles by ids, which are made of the last part of a path that tells one from another."""
    found: dict[str, str] = {}
    for path in bundles:
        parts = [part for part in Path(path).parts if part not in ("/", "runs", "bundle")]
        name = "-".join(parts[-1:]) or "bundle"
        name = "".join(each if each.isalnum() and each.isascii() else "-" for each in name.lower())
        while name in found:
            name += "-2"
        found[name] = path
    return found


def address(host: str, port: int, token: str | None) -> str:
    """Where the page is found."""
    shown = "127.0.0.1" if host in LOOPBACK else host
    return f"http://{shown}:{port}/" + ("" if token is None else f"?token={token}")


if __name__ == "__main__":
    main()
