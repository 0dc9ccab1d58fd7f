"""The house is what the import contract says, the docs draw it, and it does not grow."""

import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.house import measures

ROOT = Path(__file__).parents[1]
# (value, lines) of `python -m benchmarks.house` at most; to be lowered as the house shrinks
LIMITS: dict[str, tuple[float, int]] = {
    # 18 of the files and 3,300 lines are the page's
    "files of ldm": (199, 33_890),
    "modules at the top of ldm": (8, 0),
    "modules of a DDIM sample from a bundle": (25, 3_785),
    "modules of one FID of two folders": (31, 5_775),
    "modules of a training until its first step": (61, 9_915),
    "functions with more than 8 parameters": (8, 0),
    "public definitions without a docstring": (5, 0),
}


@pytest.fixture(scope="module")
def layers() -> list[list[str]]:
    """The names in each layer of the import contract, top first, as far as they are there."""
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = [[name.strip(" ()") for name in layer.split("|")] for layer in contract["layers"]]
    there = {path.stem for path in (ROOT / "ldm").iterdir()}
    return [kept for names in named if (kept := [name for name in names if name in there])]


def test_the_docs_draw_the_layers_of_the_contract(layers):
    page = (ROOT / "docs" / "how_it_works.md").read_text()
    drawn = re.search(r"## Where the parts are\n.*?```\n(.*?)```", page, re.DOTALL)
    assert drawn is not None
    assert [re.split(" {2,}", line)[0].split(" | ") for line in drawn[1].splitlines()] == layers


def test_every_module_is_in_a_layer(layers):
    files = {path.stem for path in (ROOT / "ldm").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "ldm").glob("*/__init__.py")}
    assert files | packages == {name for names in layers for name in names}


@pytest.mark.parametrize("package", ["models", "diffusion", "tokenizers"])
def test_the_core_imports_nothing_else_of_ldm(package):
    files = [*(ROOT / "ldm").glob(f"{package}.py"), *(ROOT / "ldm" / package).rglob("*.py")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    imported = {found[1] for line in lines if (found := re.match(r"\s*(?:from|import) (ldm[\w.]*)", line))}
    assert {name for name in imported if not name.startswith(f"ldm.{package}")} <= {"ldm"}  # UserError


def test_the_house_does_not_grow():
    found = {row.name: (row.value, row.lines or 0) for row in measures(ROOT)}
    for name, most in LIMITS.items():
        value, lines = found[name]
        assert value <= most[0], f"{name}: {value}, at most {most[0]}"
        assert lines <= most[1], f"lines of {name}: {lines}, at most {most[1]}"
