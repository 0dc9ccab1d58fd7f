"""Facts about who may ask: the names of the server, other sites, the token, sizes of bodies, paths."""

import ast
import asyncio
import itertools
import socket
from pathlib import Path
from urllib.parse import unquote

import pytest
import uvicorn
from starlette.testclient import TestClient
from uvicorn.server import ServerState

from ldm.serve import app as application
from ldm.serve import guard
from ldm.serve.app import create_app
from ldm.serve.guard import address

TOKEN = "a-token-of-24-characters"
GENERATE = {"prompts": ["x"], "quality": "fast"}


@pytest.fixture
def open_client(service, tmp_path):
    """`open_client(address)`: a client of a server that listens for other machines, with a token."""
    app = create_app(service, host="0.0.0.0", token=TOKEN, runs=tmp_path)
    return lambda address="http://192.168.0.7:7860": TestClient(app, base_url=address, follow_redirects=False)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost:9000", 200),  # a forwarded port
        ("[::1]:7860", 200),
        ("evil.com", 403),
        ("evil.com:7860", 403),
        ("127.0.0.1.evil.com", 403),
        ("192.168.0.7:7860", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_server_are_answered(client, host, status):
    answer = client.get("/health", headers={"host": host})
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"origin": "http://127.0.0.1:7860"}, 202),
        ({"origin": "http://localhost:3000"}, 403),  # another program of this machine
        ({"origin": "http://evil.com"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "127.0.0.1:7860"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_no_page_of_another_site_can_make_the_server_work(client, headers, status):
    content = b'{"prompts": ["x"], "quality": "fast"}'
    answer = client.post(
        "/v1/generate", content=content, headers={"content-type": "application/json"} | headers
    )
    assert answer.status_code == status


def test_every_route_asks_for_the_token(open_client, service):
    client = open_client()
    described = client.get("/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()["paths"]
    addresses = [*described, "/", "/index.html", "/openapi.json", "/nowhere"]
    for path, method in itertools.product(addresses, ("GET", "POST", "DELETE", "HEAD", "OPTIONS")):
        assert client.request(method, path).status_code == 401, (method, path)
    wrong = ({"authorization": "Bearer no"}, {"authorization": TOKEN[:-1]}, {"cookie": "ldm_token=x"})
    assert [client.get("/health", headers=headers).status_code for headers in wrong] == [401] * 3
    assert service.jobs(1) == []


def test_the_token_opens_the_server_as_a_header_a_cookie_or_once_in_the_address(open_client):
    client = open_client()
    assert client.get("/health", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert (
        client.get("/v1/models?token=" + TOKEN).status_code == 401
    )  # addresses are logged: only the first one
    moved = client.get(f"/?token={TOKEN}")
    assert (moved.status_code, moved.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=Strict"} <= set(moved.headers["set-cookie"].split("; "))
    assert client.get("/health").status_code == 200  # by the cookie
    others = {"cookie": f'a[]=1; b={{"c": 1}}; ldm_token=old; ldm_token={TOKEN}; d="'}
    bearer = {"authorization": f"bearer {TOKEN}"}
    assert [open_client().get("/health", headers=each).status_code for each in (others, bearer)] == [200] * 2


def test_a_server_for_other_machines_is_asked_by_its_number_or_its_own_name(open_client):
    headers = {"authorization": f"Bearer {TOKEN}"}
    own = f"http://{socket.gethostname()}:7860"
    assert open_client(own).get("/health", headers=headers).status_code == 200
    assert open_client("http://10.1.2.3:80").get("/health", headers=headers).status_code == 200
    assert open_client("http://rebound.evil.com").get("/health", headers=headers).status_code == 403


def test_a_server_with_a_name_is_asked_by_that_name_too(service, tmp_path):
    app = create_app(service, host="Box.lan", token=TOKEN, runs=tmp_path)
    headers = {"authorization": f"Bearer {TOKEN}"}
    for host, status in (("box.lan:7860", 200), ("10.1.2.3", 200), ("box.lan.evil.com", 403)):
        client = TestClient(app, base_url=f"http://{host}")
        assert client.get("/health", headers=headers).status_code == status
    assert address("::1", 7, None) == "http://[::1]:7/"


def test_a_stream_of_events_takes_no_place_of_an_upload(monkeypatch):
    monkeypatch.setattr(guard, "UPLOADS", 1)
    seen = []

    async def inner(scope, receive, send):
        seen.append(own.room.locked())

    own = guard.Guard(inner, hosts=(), numbers=False, token=None)
    for method in ("GET", "POST"):
        headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data")]
        scope = {"type": "http", "method": method, "headers": headers}

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        asyncio.run(own(scope, receive, None))
    assert seen == [False, True]
    assert not own.room.locked()


def test_pages_may_load_nothing_from_elsewhere(client):
    for path in ("/", "/health", "/nowhere"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b'{"prompts": ["x"]', 400, "it is no json"),
        (b"[" * 100_000, 400, "nested more than"),
        (b'{"prompts": ["x"], "prompts": ["y"]}', 400, "the key 'prompts' comes twice"),
        (b'{"prompts": ["x"], "count": NaN}', 400, "no finite number"),
        (b'{"prompts": ["x"], "count": 1e999}', 400, "no finite number"),
        (b'{"prompts": ["\\ud800"]}', 400, "unpaired surrogate"),
        (b'{"prompts": ["\\u0000"]}', 400, "null byte"),
        (b'{"prompts": ["\xff"]}', 400, ""),
        (b"7" * 5000, 400, ""),
        (b'"' + b"x" * guard.MAX_JSON + b'"', 413, "the body has more than 1,048,576 bytes"),
        (b"", 422, "the body: Field required"),
    ],
    ids=range(11),
)
def test_a_body_that_is_no_plain_json_is_refused(client, content, status, sentence):
    answer = client.post("/v1/generate", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert sentence in answer.json()["error"]


def test_a_body_that_claims_or_sends_too_much_is_not_read_to_its_end(client):
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield b" " * 2**18

    kind = {"content-type": "application/json"}
    assert client.post("/v1/generate", headers=kind | {"content-length": str(10**9)}).status_code == 413
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    pieces = endless()

    async def receive():
        return {"type": "http.request", "body": next(pieces), "more_body": True}

    with pytest.raises(guard.Denied) as denied:
        asyncio.run(guard.checked_body(scope, receive))
    assert denied.value.status == 413
    assert len(sent) == 5


def test_a_connection_whose_request_does_not_come_is_closed_and_one_that_waits_for_an_answer_is_not(
    monkeypatch,
):
    monkeypatch.setattr(application, "IDLE", 0.05)

    async def slow(scope, receive, send):
        await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def said(*requests: bytes) -> list[bytes]:
        config = uvicorn.Config(slow, http=application.Connection, ws="none", lifespan="off")
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: application.Connection(config, state, {}), "127.0.0.1", 0
        )
        answers = []
        for request in requests:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(request)
            answers.append(await asyncio.wait_for(reader.read(), 60))  # until it is closed
            writer.close()
        server.close()
        return answers

    none, half, whole = asyncio.run(
        said(b"", b"GET / HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    )
    assert (none, half) == (b"", b"")
    assert whole.startswith(b"HTTP/1.1 204")


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.01)
    scope = {"type": "http", "method": "POST", "headers": []}

    async def receive():
        await asyncio.sleep(100)

    with pytest.raises(guard.Denied) as denied:
        asyncio.run(guard.checked_body(scope, receive))
    assert denied.value.status == 408


def test_a_body_that_comes_byte_by_byte_gives_its_place_back(monkeypatch):
    monkeypatch.setattr(guard, "WINDOW", 0.01)
    monkeypatch.setattr(guard, "LEAST", 4)
    sizes = iter((4, 5, 1, 1, 1))  # the first two windows have enough bytes, and then no more come

    async def receive():
        if (size := next(sizes, None)) is None:
            await asyncio.sleep(100)
        return {"type": "http.request", "body": bytes(size), "more_body": True}

    with pytest.raises(guard.Denied, match="fewer than 4 bytes of the body came in 0 s") as denied:
        asyncio.run(guard.read(receive, most=100))
    assert denied.value.status == 408
    assert next(sizes, None) is None


async def got(app, path: str) -> tuple[int, bytes]:
    """Status and body of a request whose path no client has tidied up."""
    host = [(b"host", b"127.0.0.1")]
    plain, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": unquote(plain),
        "raw_path": plain.encode(),
        "headers": host,
    }
    scope |= {"query_string": query.encode(), "root_path": "", "scheme": "http", "http_version": "1.1"}
    messages = []

    async def receive():
        await asyncio.Event().wait()  # nothing more comes, and the connection stays

    async def send(message):
        messages.append(message)

    await app(scope | {"server": ("127.0.0.1", 7860), "client": ("127.0.0.1", 1)}, receive, send)
    return messages[0]["status"], b"".join(each.get("body", b"") for each in messages)


def test_no_path_leads_out_of_what_is_served(client, service):
    secret = service.history.folder.parent / "secret.txt"
    secret.write_text("the secret")
    (service.history.folder / "pictures").mkdir()
    steps = ["../", "..%2f", "%2e%2e/", "..%252f", "..\\", "..%5c", "....//", "%c0%ae%c0%ae/", "..%00/", "/"]
    routes = ["/", "/v1/pictures/", "/v1/pictures.zip?ids=", "/v1/runs/", "/v1/comparisons/"]
    names = ("secret.txt", "serve.sqlite", "etc/passwd")
    tried = list(itertools.product(routes, steps, (1, 3), names))
    assert len(tried) == 300

    async def try_all():
        return [await got(client.app, f"{route}{step * count}{name}") for route, step, count, name in tried]

    for status, body in asyncio.run(try_all()):
        assert status < 500
        assert not any(leak in body for leak in (b"the secret", b"root:", b"SQLite"))


def test_no_function_that_blocks_is_async():
    for file in Path(guard.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.AsyncFunctionDef):
                inner = list(ast.walk(node))
                assert any(isinstance(each, ast.Await | ast.AsyncFunctionDef) for each in inner[1:]), (
                    node.name
                )
