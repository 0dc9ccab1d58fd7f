"""How large the house is, and how many modules a reader has to walk through in it.

    python -m benchmarks.house [--root DIR]

Prints one row a measure: files and lines of `ldm`, modules at its top, the modules and lines that belong to
three tasks, functions with many parameters, public definitions without docstring, comments in 100 lines.
A task's modules are what its entry imports, at the top of a file or inside a function, and what these import
in turn; to a training belongs what its config names, too.
"""

import argparse
import ast
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MANY_PARAMETERS = 8
SAMPLERS = "ldm.diffusion.samplers"
# modules that a training of the default config builds its objects from, besides what its entry imports
TRAINING = ("ldm.stages.diffusion", "ldm.data.latents", "ldm.callbacks.saving", "ldm.callbacks.ema")


class Measure(NamedTuple):
    """A row of the table."""

    name: str
    value: float
    lines: int | None = None


class House:
    """The modules of `ldm`, parsed.

    Args:
        root: folder that holds the package.
    """

    def __init__(self, root: Path) -> None:
        files = {path: module_name(path, root) for path in sorted((root / "ldm").rglob("*.py"))}
        self.sources = {name: path.read_text(encoding="utf-8") for path, name in files.items()}
        self.trees = {name: ast.parse(source) for name, source in self.sources.items()}

    def lines(self, names: Iterable[str]) -> int:
        """Lines of some modules together."""
        return sum(len(self.sources[name].splitlines()) for name in names)

    def imported(self, name: str) -> set[str]:
        """Modules of `ldm` that a module imports, wherever in it the import stands."""
        found: set[str] = set()
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return found & self.sources.keys()

    def closure(self, *entries: str) -> list[str]:
        """The entries, what they import, and what that imports."""
        seen: set[str] = set()
        waiting = list(entries)
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += self.imported(name)
        return sorted(seen)

    def module_with(self, function: str, package: str) -> str:
        """The module of a package that defines a function, whatever it is called."""
        for name, tree in self.trees.items():
            definitions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            if name.startswith(package) and function in definitions:
                return name
        raise ValueError(f"no module of {package} defines {function}")


def module_name(path: Path, root: Path) -> str:
    """The dotted name of a module's file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def measures(root: Path) -> list[Measure]:
    """Every measure of the house in a folder."""
    house = House(root)
    tasks = {
        "a DDIM sample from a bundle": ("ldm.sample", house.module_with("ddim", SAMPLERS)),
        "one FID of two folders": ("ldm.evaluate",),
        "a training until its first step": ("ldm.train", *(each for each in TRAINING if each in house.trees)),
    }
    rows = [
        Measure("files of ldm", len(house.sources), house.lines(house.sources)),
        Measure("modules at the top of ldm", len(list((root / "ldm").glob("[!_]*.py")))),
    ]
    for task, entries in tasks.items():
        names = house.closure(*entries)
        rows.append(Measure(f"modules of {task}", len(names), house.lines(names)))
    nodes = [node for tree in house.trees.values() for node in ast.walk(tree)]
    definitions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    functions = [node for node in definitions if isinstance(node, ast.FunctionDef)]
    inner = {node for function in functions for node in ast.walk(function) if node is not function}
    public = [node for node in definitions if node.name[0] != "_" and node not in inner]
    bare = [node for node in public if not ast.get_docstring(node)]
    long = [node for node in functions if parameters(node) > MANY_PARAMETERS]
    comments = sum(comment_lines(source) for source in house.sources.values())
    return [
        *rows,
        Measure(f"functions with more than {MANY_PARAMETERS} parameters", len(long)),
        Measure("public definitions without a docstring", len(bare)),
        Measure("comments in 100 lines", round(100 * comments / house.lines(house.sources), 1)),
    ]


def parameters(function: ast.FunctionDef) -> int:
    """Parameters of a function or method, without `self`."""
    own = function.args
    names = [each.arg for each in (*own.posonlyargs, *own.args, *own.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def comment_lines(source: str) -> int:
    """Comments of a source, those behind code too."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    print("| measure | value | lines |\n| --- | ---: | ---: |")
    for row in measures(parser.parse_args().root):
        print(f"| {row.name} | {row.value:g} | {'' if row.lines is None else f'{row.lines:,}'} |")


if __name__ == "__main__":
    main()
