"""Where the server listens: on this machine only, or for others with a token, and the address to open."""

import os
import re
import secrets
import socket

from ldm import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERY = ("0.0.0.0", "::")  # addresses that stand for all of this machine's
TOKEN = "LDM_TOKEN"  # environment variable: other users of the machine can read a command, not this


def token_of(host: str, typed: str | None) -> str | None:
    """The token that requests must have; raises UserError where there must be one and is none."""
    token = typed or os.environ.get(TOKEN)
    if token is None and host not in LOOPBACK:
        suggested = secrets.token_urlsafe(24)
        raise UserError(
            f"host={host} lets other machines in, so that a token is needed: set the environment"
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


def address(host: str, port: int, token: str | None) -> str:
    """Where the page is found."""
    shown = socket.gethostname() if host in EVERY else host
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + ("" if token is None else f"?token={token}")
