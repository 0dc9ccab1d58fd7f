"""A real server and a real browser: `make page`. None of these files is collected by `make test`.

The browser is Debian's Chromium (`apt-get install chromium`), or the one that LDM_CHROMIUM names.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from ldm.checkpoints.bundle import SHIPPED
from tests.serve.test_run_states import hold_on, make_run

CHROMIUM = os.environ.get("LDM_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
QUIET = (  # a browser of its own talks to its maker otherwise, and that is not the page's doing
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PATIENCE = 60_000  # ms that the page is given for anything
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class Server:
    """`python -m ldm.serve` in a process of its own; `address` is where its page is."""

    def __init__(self, folder: Path, bundles: str) -> None:
        self.folder, self.bundles, self.port = folder, bundles, 0
        self.start()

    def start(self) -> None:
        """Starts it and waits until it prints its address."""
        command = [sys.executable, "-m", "ldm.serve", f"port={self.port}", f"bundles=[{self.bundles}]"]
        command += [f"state={self.folder / 'state'}", f"runs={self.folder / 'runs'}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        printed = next(line for line in self.process.stdout if line.startswith("open "))
        found = re.search(r"http://[\d.]+:(\d+)", printed)
        assert found is not None
        self.address, self.port = found[0], int(found[1])  # the next start takes the same one

    def stop(self) -> None:
        """Interrupts it, as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)

    def get(self, path: str) -> object:
        """The json at an address."""
        with urlopen(self.address + path) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def log() -> Callable[[str], None]:
    """`log(line)`: writes a line to `runs/page/log.txt`, which `make page` prints."""
    file = Path("runs/page/log.txt")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")

    def write(line: str) -> None:
        with file.open("a") as stream:
            stream.write(f"{line}\n")

    return write


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Iterator[Path]:
    """A server's folder with a finished, a stopped, a died and a running training."""
    folder = tmp_path_factory.mktemp("served")
    files = {"finished": {"saved": 60, "finished": True}, "stopped": {"saved": 60}, "died": {"saved": 40}}
    files["running"] = {"saved": 40}
    for name, kept in files.items():
        run = make_run(folder / "runs" / name / "20261129-000000", logged=60, **kept)
        (run / "run.json").write_text(json.dumps({"config_hash": "0", "command": "python -m ldm.train"}))
        (run / "config.yaml").write_text("trainer: {max_steps: 60}\n")
        (run / "samples").mkdir()
        with Image.open(Path("experiments/emoji/prompts.png")) as sheet:
            sheet.save(run / "samples" / "step=000060.png")
    forked = multiprocessing.get_context("fork")
    said = forked.Event()
    process = forked.Process(target=hold_on, args=(folder / "runs" / "running" / "20261129-000000", said))
    process.start()
    assert said.wait(60)
    yield folder
    process.kill()
    process.join()


@pytest.fixture(scope="session")
def server(runs) -> Iterator[Server]:
    """A server of the shipped model, and of a copy of it that hardly follows the words."""
    other = shutil.copytree(SHIPPED, runs / "unguided")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("scale: 2.0", "scale: 0.5"))
    started = Server(runs, f"shipped,{other}")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; a sentence where there is none."""
    if not Path(CHROMIUM).is_file():
        pytest.exit("there is no Chromium: apt-get install chromium, or set LDM_CHROMIUM to one", 1)
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, server, log, request) -> Iterator[Callable[..., Page]]:
    """`visit(room, **options)`: the page in a window of its own. At the end no request left the machine."""
    contexts: list[BrowserContext] = []
    requests: list[str] = []
    faults: list[str] = []

    def opened(room: str = "create", **options: object) -> Page:
        context = browser.new_context(base_url=server.address, **({"viewport": DESKTOP} | options))
        context.set_default_timeout(PATIENCE)
        context.on("request", lambda request: requests.append(request.url))
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{server.address}/#{room}")
        expect(page.locator("#server")).to_have_attribute("data-state", "well")
        return page

    yield opened
    for context in contexts:
        context.close()
    outside = [url for url in requests if not url.startswith((server.address, "data:", "blob:"))]
    log(f"{request.node.name}: {len(requests)} requests, {len(outside)} of them to other machines")
    assert outside == []
    assert faults == []
