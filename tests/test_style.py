"""The rules of the house that a program can check (CONTRIBUTING.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ldm", "data_prep", "experiments", "benchmarks", "hydra_plugins")
UNSAFE = re.compile(
    r"weights_only *= *False|trust_remote_code|yaml\.load\(|pickle\.load|extractall\(|shell *= *True"
)


@pytest.fixture(scope="module")
def sources() -> dict[Path, str]:
    """The text of every file of the packages, by its path in the repository."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    found = {path.relative_to(ROOT): path.read_text() for path in paths}
    assert len(found) > 100
    return found


def long_functions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
            yield node.name


def test_a_file_is_one_idea(sources):
    assert [path for path, source in sources.items() if len(source.splitlines()) > 350] == []
    unnamed = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert [path for path in sources if path.stem in unnamed] == []
    assert [path for path, source in sources.items() if not ast.get_docstring(ast.parse(source))] == []


def test_functions_can_be_seen_whole(sources):
    assert [(path, name) for path, source in sources.items() for name in long_functions(source)] == []


def test_a_command_runs_once_all_that_it_calls_is_defined(sources):
    early = []
    for path, source in sources.items():
        *before, last = ast.parse(source).body
        guards = [
            ast.unparse(each.test) == "__name__ == '__main__'" for each in before if isinstance(each, ast.If)
        ]
        if any(guards) and not isinstance(last, ast.If):
            early.append(path)
    assert early == []


def test_a_method_that_subclasses_must_give_is_abstract(sources):
    assert [path for path, source in sources.items() if "raise NotImplementedError" in source] == []


def test_nothing_untrusted_executes(sources):
    assert [path for path, source in sources.items() if UNSAFE.search(source)] == []


def starts_early(source: str) -> bool:
    """Whether something follows the last `if __name__ == "__main__"` of a file."""
    nodes = ast.parse(source).body
    starts = [isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in nodes]
    return any(starts) and not starts[-1]


def test_a_command_starts_where_its_file_ends(sources):
    """What stands below is not defined yet when the command runs, and tests that import it don't notice."""
    assert [path for path, source in sources.items() if starts_early(source)] == []
