"""The rules of the house that a program can check (CONTRIBUTING.md)."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ldm", "data_prep", "experiments", "benchmarks", "hydra_plugins")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
UNSAFE = re.compile(
    r"weights_only *= *False|trust_remote_code|yaml\.load\(|pickle\.load|extractall\(|shell *= *True"
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_one_idea(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 350
    assert path.stem not in {"util", "utils", "helper", "helpers", "common", "misc"}
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_functions_can_be_seen_whole(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_untrusted_executes(path):
    assert not UNSAFE.search(path.read_text())
