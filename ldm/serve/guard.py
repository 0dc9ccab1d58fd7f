"""Who may use the server: where it listens, its token, and what each request passes before any route."""

import asyncio
import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ldm import UserError
from ldm.io.reading import parse_json

Scope, Message = MutableMapping[str, Any], MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERY = ("0.0.0.0", "::")  # addresses that stand for all of this machine's
TOKEN = "LDM_TOKEN"  # environment variable: other users of the machine can read a command, not this
MAX_JSON = 2**20  # bytes of a body
MAX_UPLOAD = 2**24  # bytes of a body with a picture
BODY_SECONDS = 30.0  # that a body may take
WINDOW, LEAST = 5.0, 2**16  # seconds in which so many bytes of a body, or its end, must come
UPLOADS = 2  # bodies with pictures that are read at the same time
COOKIE = "ldm_token"
FORM = "multipart/form-data"
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Denied(Exception):
    """A request that is answered at once with a status and a sentence."""

    def __init__(self, status: int, sentence: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, list(headers)


class Guard:
    """An ASGI application around another one, which sees only what is allowed.

    Args:
        hosts: names that a Host header may have, beside those of the loopback interface.
        numbers: whether it may be any address in numbers, which no attacker can give a page of his own: DNS
            rebinding needs a name.
        token: is demanded of every request where there is one.
    """

    def __init__(self, app: Asgi, *, hosts: Iterable[str], numbers: bool, token: str | None) -> None:
        self.app, self.token, self.room = app, token, asyncio.Semaphore(UPLOADS)
        self.numbers, self.hosts = numbers, {*LOOPBACK, *map(str.lower, hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what is allowed, and answers the rest."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        begun = []

        async def _send(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(True)
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        try:
            self.check_origin(scope)
            self.check_token(scope)
            if kind_of(scope) != FORM or scope["method"] != "POST":
                return await self.app(scope, await checked_body(scope, receive), _send)
            await self.upload(scope, receive, _send)
        except Denied as denied:
            await answer(_send, denied)
        except asyncio.CancelledError:  # the server ends, and has waited for a second
            if not begun:
                await answer(_send, Denied(503, "the server is closing: start it again"))

    async def upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on a body with a picture; its bytes are held in memory, so that only a few come at once."""
        try:
            await asyncio.wait_for(self.room.acquire(), BODY_SECONDS)
        except TimeoutError:
            wait = [(b"retry-after", b"5")]
            raise Denied(503, "too many pictures are sent at once: try again", wait) from None
        try:
            await self.app(scope, await checked_body(scope, receive), send)
        finally:
            self.room.release()

    def check_origin(self, scope: Scope) -> None:
        """Denies requests to another name than ours, and those that a page from elsewhere sends."""
        host = header(scope, b"host")
        if not self.is_ours(host):
            raise Denied(
                403, f"the host {host[:80]!r} is not this server's: open the address that it printed"
            )
        origin = header(scope, b"origin")
        is_foreign = bool(origin) and origin.partition("://")[2].lower() != host.lower()
        if is_foreign or (header(scope, b"sec-fetch-site") == "cross-site" and scope["method"] != "GET"):
            raise Denied(403, "this request comes from a page of another site, which may not use the server")

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.hosts:
            return True
        try:
            return self.numbers and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def check_token(self, scope: Scope) -> None:
        """Denies requests without the token; one that has it in its address gets a cookie instead."""
        if self.token is None:
            return
        scheme, _, bearer = header(scope, b"authorization").partition(" ")
        given = [bearer if scheme.lower() == "bearer" else "", *cookies(scope)]
        if any(self.fits(each) for each in given):
            return
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if scope["method"] == "GET" and scope["path"] == "/" and self.fits(asked):
            value = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            raise Denied(303, "", [(b"location", b"/"), (b"set-cookie", value.encode())])
        raise Denied(
            401,
            "this server asks for its token: open the address that it printed, or send it as"
            " Authorization: Bearer <token>",
            [(b"www-authenticate", b"Bearer")],
        )

    def fits(self, given: str) -> bool:
        """Whether a text is the token, compared in a time that says nothing about it."""
        return hmac.compare_digest(given.encode(), (self.token or "").encode())


def header(scope: Scope, name: bytes) -> str:
    """The value of a header; empty where there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def kind_of(scope: Scope) -> str:
    """The type of a body."""
    return header(scope, b"content-type").partition(";")[0].strip().lower()


def cookies(scope: Scope) -> list[str]:
    """The tokens in the cookies, of which servers at other ports of this machine set some, in any form."""
    pairs = (each.strip().partition("=") for each in header(scope, b"cookie").split(";"))
    return [value for name, _, value in pairs if name == COOKIE]


async def checked_body(scope: Scope, receive: Receive) -> Receive:
    """The `receive` of a request whose body keeps to the limits; one of json is read and checked here.

    Raises Denied for a body that is too long, too slow, of no type that a route reads, or no plain json.
    """
    if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
        return receive
    kind = kind_of(scope)
    most = MAX_UPLOAD if kind == FORM else MAX_JSON
    length = header(scope, b"content-length")
    if length and (not re.fullmatch("[0-9]{1,18}", length) or int(length) > most):
        raise Denied(413, f"the body has more than {most:,} bytes")
    try:
        body = await asyncio.wait_for(read(receive, most=most), BODY_SECONDS)
    except TimeoutError:
        raise Denied(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
    if body and kind == "application/json":
        try:
            await asyncio.to_thread(parse_json, body, name="the body")  # a large one takes a while
        except UserError as error:
            raise Denied(400, str(error)) from None
    elif body and kind != FORM:
        raise Denied(415, "the body must be application/json, or multipart/form-data with a picture")
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def _receive() -> Message:
        return next(parts, None) or await receive()

    return _receive


async def read(receive: Receive, *, most: int) -> bytes:
    """A whole body; raises Denied once it is longer than `most`, comes too slowly, or its sender has gone."""
    body, more = bytearray(), True
    while more:
        wanted = len(body) + LEAST
        try:
            async with asyncio.timeout(WINDOW):
                while more and len(body) < wanted:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Denied(400, "the connection ended before the body did")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError:  # else a few that send a byte now and then would take all places of uploads
            raise Denied(
                408, f"fewer than {LEAST:,} bytes of the body came in {WINDOW:.0f} seconds"
            ) from None
        if len(body) > most:
            raise Denied(413, f"the body has more than {most:,} bytes")
    return bytes(body)


async def answer(send: Send, denied: Denied) -> None:
    """Sends a status with a sentence as json."""
    body = json.dumps({"error": str(denied)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close"), *denied.headers]
    await send({"type": "http.response.start", "status": denied.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
