"""What can be read off the page's files: nothing of others, no markup out of text, names that exist."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ldm.serve.app import PAGE

FILES = sorted(path for path in PAGE.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))
NAMESPACE = "http://www.w3.org/2000/svg"


class Elements(HTMLParser):
    """The start tags of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps it."""
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements() -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed((PAGE / "index.html").read_text())
    return parser.found


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_file_is_small_and_names_no_other_machine(file: Path):
    text = file.read_text()
    assert len(text.splitlines()) <= 350
    assert re.findall(r"(?:https?:)?//[\w-]+\.\w+[^\s\"']*", text.replace(NAMESPACE, "")) == []


def test_text_never_becomes_markup_or_code():
    for file in FILES:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", file.read_text()
        )


def test_modules_import_what_others_export():
    sources = {path.name: path.read_text() for path in FILES if path.suffix == ".js"}
    exported = {
        name: set(re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", text, re.MULTILINE))
        for name, text in sources.items()
    }
    for text in sources.values():
        for names, module in re.findall(r"^import \{ (.*?) \} from \"\./(.*?)\";", text, re.MULTILINE):
            assert set(names.split(", ")) <= exported[module]


def test_the_page_loads_files_that_are_there(elements):
    loaded = [
        attributes.get("src") or attributes.get("href")
        for tag, attributes in elements
        if tag in ("script", "link", "img")
    ]
    assert loaded
    assert all((PAGE / str(name)).is_file() for name in loaded)


def test_ids_that_modules_ask_for_are_on_the_page(elements):
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    asked = {
        name
        for path in FILES
        if path.suffix == ".js"
        for name in re.findall(r'byId\("([\w-]+)"\)', path.read_text())
    }
    assert asked <= set(ids)


def test_every_control_has_a_label_and_every_question_mark_a_sentence(elements):
    labels = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    for tag, attributes in elements:
        if tag in ("select", "textarea") or (
            tag == "input" and attributes.get("type") not in ("radio", "file")
        ):
            assert attributes["id"] in labels
        if "tip" in (attributes.get("class") or "").split():
            assert attributes["data-about"]
            assert str(attributes["data-tip"]).endswith(".")


def test_a_browser_asks_whether_the_page_has_changed(client):
    answer = client.get("/main.js")
    assert answer.headers["cache-control"] == "no-cache"
    assert client.get("/main.js", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert client.get("/").text == (PAGE / "index.html").read_text()
