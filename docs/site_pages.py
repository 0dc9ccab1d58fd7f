"""Hook of mkdocs: the site has the folders of the repository, so that every relative link works in both.

Pages are the Markdown files that the navigation names. Other files are copied if a page links to them. The
API reference gets one page per package of `ldm`, from the docstrings.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
PRIVATE = ("assets",)  # folders of ldm that hold no code


def links(page: Path) -> Iterator[Path]:
    """Files and folders that a Markdown page links to; addresses of the web are left out."""
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            yield (page.parent / target).resolve()


def packages() -> list[str]:
    """Dotted names of the packages and modules right below `ldm`."""
    entries = sorted((ROOT / "ldm").iterdir())
    found = [path for path in entries if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return [f"ldm.{path.stem}" for path in found if path.stem not in ("__init__", *PRIVATE)]


def pages(nav: Any) -> Iterable[str]:
    """Every path that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(entry)


def on_config(config: Any) -> Any:
    """Adds the reference to the navigation."""
    config.nav.append({"Reference": [{name: f"reference/{name}.md"} for name in packages()]})
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Replaces the files of docs/ by the pages of the navigation and by what these link to."""
    from mkdocs.structure.files import File, Files  # here: the tests use `links` without mkdocs

    found = {ROOT / name for name in pages(config.nav) if not name.startswith("reference/")}
    linked = {target for page in found for target in links(page) if target.is_file()}
    site = Files([file for file in files if not file.src_uri.endswith((".py", ".md", ".svg", ".png"))])
    for path in sorted(found | linked):
        site.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name in packages():
        site.append(File.generated(config, f"reference/{name}.md", content=f"::: {name}\n"))
    return site


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links to folders of the source become plain text: a site has no listing of them."""
    folder = (ROOT / page.file.src_uri).parent

    def plain(match: re.Match[str]) -> str:
        return match[0].split("](")[0].lstrip("[") if (folder / match[1]).is_dir() else match[0]

    return LINK.sub(plain, markdown)
