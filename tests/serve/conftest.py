"""A server of the tiny bundle: its networks run in a process of their own, once for all tests."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ldm.serve.app import create_app
from ldm.serve.history import History
from ldm.serve.networks import Networks
from ldm.serve.service import Service

collect_ignore = ["browser"]  # `make page` names its files: no other test waits for the import of a browser
LIMIT = 24  # pictures that may wait
ENDED = ("finished", "stopped", "failed", "interrupted")


@pytest.fixture(scope="session")
def networks(bundle_path, tmp_path_factory) -> Iterator[Networks]:
    twin = shutil.copytree(bundle_path, tmp_path_factory.mktemp("twin") / "bundle")
    config = twin / "config.yaml"
    config.write_text(config.read_text().replace("scale: 3.0", "scale: 0.5"))
    with closing(Networks({"tiny": str(bundle_path), "twin": str(twin)}, chunk=None)) as started:
        yield started


@pytest.fixture
def service(networks, tmp_path) -> Iterator[Service]:
    with (
        closing(History(tmp_path / "state")) as history,
        closing(Service(networks, history, limit=LIMIT, examples=["red apple"])) as served,
    ):
        yield served


@pytest.fixture
def client(service, tmp_path) -> TestClient:
    """A client of the application, in this process."""
    app = create_app(service, host="127.0.0.1", token=None, runs=tmp_path / "runs")
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


@pytest.fixture
def wait(service) -> Callable[[str], dict[str, Any]]:
    """`wait(id)`: the job, once it has ended."""

    def until(name: str) -> dict[str, Any]:
        while (job := service.job(name))["state"] not in ENDED:
            time.sleep(0.01)
        return job

    return until


@pytest.fixture
def make(client, wait) -> Callable[..., dict[str, Any]]:
    """`make(prompt, **fields)`: the ended job of a request."""

    def made(prompt: str = "red apple", **fields: Any) -> dict[str, Any]:
        answer = client.post("/v1/generate", json={"prompts": [prompt], **fields})
        assert answer.status_code == 202, answer.text
        return wait(answer.json()["id"])

    return made


@pytest.fixture
def picture(client, make, tmp_path) -> Callable[..., Path]:
    """`picture(prompt, **fields)`: the file of one picture, as it is downloaded."""

    def downloaded(prompt: str = "red apple", **fields: Any) -> Path:
        (name,) = make(prompt, **fields)["pictures"]
        file = tmp_path / f"{name}.png"
        file.write_bytes(client.get(f"/v1/pictures/{name}").content)
        return file

    return downloaded
