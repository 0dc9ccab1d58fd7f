"""Facts about the command: OpenAI's client, the examples of the documentation, its end, what it refuses."""

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from PIL import Image

from ldm.serve.__main__ import named
from ldm.serve.history import History

ROOT = Path(__file__).parents[2]


class Running(NamedTuple):
    """A server that runs, and its address."""

    process: subprocess.Popen[str]
    address: str
    log: Path  # what it printed as errors


def started(*options: object, log: Path) -> Running:
    command = [sys.executable, "-m", "ldm.serve", "port=0", *map(str, options)]
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"open (http://127\.0\.0\.1:\d+)/", line)
    assert found, line
    return Running(process, found[1], log)


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def server(bundle_path, state, tmp_path_factory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("log") / "errors"
    running = started(f"bundle={bundle_path}", f"state={state}", log=log)
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def images(server):
    """Pictures by OpenAI's own client, whose import takes half a second."""
    import openai

    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0).images


def test_openais_own_client_gets_pictures(images):
    made = images.generate(prompt="a cat", n=2, size="auto", quality="low")
    for each in made.data:
        with Image.open(io.BytesIO(base64.b64decode(each.b64_json))) as picture:
            assert picture.size == (16, 16)
    seeded = {"prompt": "a cat", "extra_body": {"seed": 3}, "response_format": "b64_json"}
    one, other = (images.generate(**seeded).data[0].b64_json for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("asked", "kind", "param", "sentence"),
    [
        ({"size": "1024x1024"}, "UnprocessableEntityError", "size", "size=1024x1024 is not"),
        ({"response_format": "url"}, "UnprocessableEntityError", "response_format", "write b64_json"),
        ({"n": 11}, "UnprocessableEntityError", "n", "less than or equal to 10"),
        ({"model": "dall-e-3"}, "NotFoundError", "model", "there is no model 'dall-e-3'"),
        ({"style": "vivid"}, "UnprocessableEntityError", "style", "Extra inputs"),
        ({"n": 2, "extra_body": {"seed": 2**63 - 1}}, "UnprocessableEntityError", "seed", "is too large"),
        ({"model": "x" * 101}, "UnprocessableEntityError", "model", "at most 100 characters"),
        ({"prompt": ""}, "UnprocessableEntityError", "prompt", "at least 1 character"),
    ],
)
def test_openais_client_is_refused_in_its_own_shape(images, asked, kind, param, sentence):
    import openai

    with pytest.raises(getattr(openai, kind)) as refused:
        images.generate(**{"prompt": "a cat"} | asked)
    assert refused.value.param == param
    assert sentence in refused.value.body["message"]


@pytest.mark.parametrize("language", ["python", "bash"])
def test_the_examples_of_the_documentation_run(server, language, tmp_path):
    page = (ROOT / "docs" / "serve.md").read_text()
    codes = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (code,) = [code for code in codes if "127.0.0.1:7860" in code]
    code = code.replace("http://127.0.0.1:7860", server.address)
    runner = [sys.executable, "-c"] if language == "python" else ["bash", "-ec"]
    done = subprocess.run([*runner, code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "apple.png") as picture:
        assert "ldm" in picture.text


def test_a_client_that_hangs_up_frees_the_networks(server):
    body = json.dumps({"prompt": "who hangs up", "n": 10, "quality": "high"}).encode()
    head = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as gone:
        gone.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

        def found() -> list[dict]:
            jobs = httpx.get(f"{server.address}/v1/jobs").json()
            return [job for job in jobs if job["request"]["prompts"] == ["who hangs up"]]

        while not found():
            time.sleep(0.01)
    while (job := found()[0])["state"] in ("queued", "running"):
        time.sleep(0.05)
    assert job["state"] in ("stopped", "finished")  # finished, where ten tiny pictures took less time


def test_ctrl_c_ends_it_quietly_and_what_ran_is_marked(server, state):
    asked = {"prompts": ["fox"], "count": 64, "options": {"steps": 250}}
    job = httpx.post(f"{server.address}/v1/generate", json=asked).json()["id"]
    half = "POST /v1/uploads HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    place = ("127.0.0.1", int(server.address.rpartition(":")[2]))
    with (
        httpx.stream("GET", f"{server.address}/v1/jobs/{job}/events") as events,  # a page that is open
        socket.create_connection(place) as upload,
    ):
        next(events.iter_lines())
        upload.sendall(f"{half}content-length: 1000\r\n\r\nsome".encode())
        httpx.get(f"{server.address}/health")  # the half upload has come before it
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=60) == 0
        assert b"503" in upload.recv(100)
    assert server.log.read_text() == ""  # no traceback of what was open
    with closing(History(state)) as history:  # as the next server opens it
        found = history.job(job)
    assert found["state"] == "interrupted"
    assert "generate it again" in found["error"]


def test_help_needs_no_network_library(command):
    said = command("ldm.serve.__main__", "--help").out
    assert "python -m ldm.serve bundle=runs/emoji port=8000" in said
    assert "queue: 256" in said


def test_models_are_named_after_their_bundles():
    paths = [
        "shipped",
        "runs/emoji",
        "/work/runs/emoji/20260101-1/bundle",
        "bundles/SD 1.5",
        "/x/shipped/bundle",
    ]
    ids = ["shipped", "emoji", "emoji-20260101-1", "sd-1-5", "shipped-2"]
    assert named(paths) == dict(zip(ids, paths, strict=True))


def test_what_can_not_be_served_is_refused_in_a_sentence(command, tmp_path, monkeypatch, bundle_path):
    monkeypatch.delenv("LDM_TOKEN", raising=False)
    taken = socket.create_server(("127.0.0.1", 0))
    port, state = taken.getsockname()[1], f"state={tmp_path / 'state'}"

    def refused(*options: str) -> str:
        return command("ldm.serve.__main__", state, *options, status=1).sentence

    assert f"port={port} at host=127.0.0.1 can't be used" in refused(f"port={port}")
    assert "port=-1 at host=127.0.0.1 can't be used" in refused("port=-1")
    assert "host=0.0.0.0 lets other machines in" in refused("host=0.0.0.0", "port=0")
    assert "the token must have 16 to 200 characters" in refused("token=short", "port=0")
    assert "queue=0 must be" in refused("queue=0", "port=0")
    assert "there is no key 'bundel'" in refused("bundel=shipped")
    file = tmp_path / "file"
    file.write_text("")
    assert str(file) in refused("port=0", f"state={file}")
    assert not (tmp_path / "state").exists()
    assert f"there is no bundle at {tmp_path}/none" in refused("port=0", f"bundle={tmp_path}/none")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "ldm.serve needs fastapi: pip install 'ldm[serve]'" in refused("port=0")
