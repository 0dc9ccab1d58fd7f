"""What the documentation says can be typed, followed and believed: commands, links, examples."""

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from data_prep.command_line import read_options
from ldm.config import CONF, check

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "slurm/*.md", "experiments/**/README.md")
    for path in ROOT.glob(pattern)
)
OWN = [path for path in PAGES if path.parent in (ROOT / "docs", ROOT / "slurm") or path == ROOT / "README.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"#.*\bneeds?\b")  # a comment that says what a command needs
PROGRAMS = {"make", "python", "torchrun", "sbatch", "source", "wandb", "eval", "slurm/cluster.sh"}
# what a fresh clone on a laptop doesn't have: photographs, GPUs, files of others, a cluster, the network
NEEDY = re.compile(
    r"flickr(?!_cpu)|sd15|\bsbatch |hydra/launcher=slurm|torchrun|trainer=(ddp|fsdp)|\bfrom=|fetch=true|"
    r"wandb |pip install|\bsource=|make slurm|pictures=|image=|mask=|again=|<run>"
)
ELSEWHERE = re.compile(r"\b(drawings|dealt out|deals? out|go(es)? on|makes of|tells? of|evaluations a)\b")


def name(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[str]:
    """The code of one language on a page."""
    for found, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if found == language:
            yield code


class Command(NamedTuple):
    """One command of a page: its line with its comment, and its words."""

    page: str
    line: str
    words: tuple[str, ...]


def commands() -> Iterator[Command]:
    """Every command of every shell block; one that continues on the next line is one command."""
    for page in PAGES:
        for code in blocks(page, "sh"):
            for line in code.replace("\\\n", " ").splitlines():
                for words in _parts(shlex.split(line, comments=True)):
                    yield Command(name(page), line, tuple(words))


def _parts(words: list[str]) -> Iterator[list[str]]:
    while "&&" in words:
        at = words.index("&&")
        yield words[:at]
        words = words[at + 1 :]
    if words:
        yield words


COMMANDS = list({command.words: command for command in commands()}.values())


def module_and_arguments(words: tuple[str, ...]) -> tuple[str, list[str]]:
    """The module that a command runs, and its arguments; an empty name if it runs none of ours."""
    if words[0] == "sbatch":
        script = next(number for number, word in enumerate(words) if word.endswith(".sbatch"))
        return f"ldm.{Path(words[script]).stem}", list(words[script + 1 :])
    if words[0] in ("python", "torchrun"):
        start = words.index("-m")
        return words[start + 1], list(words[start + 2 :])
    return "", []


def check_command(words: tuple[str, ...]) -> None:
    """Refuses a command whose program, target, module or option doesn't exist."""
    words = (words[0].removeprefix(".venv/bin/"), *words[1:])
    assert words[0] in PROGRAMS
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(words[1:]) <= targets
    module, arguments = module_and_arguments(words)
    if not module or module == "pip":
        return
    found = ROOT.joinpath(*module.split("."))
    assert found.with_suffix(".py").is_file() or (found / "__main__.py").is_file(), module
    flags = {each for each in arguments if each in ("--help", "-m", "--cfg", "job")}
    values = [each for each in arguments if each not in flags]
    package, _, name = module.partition(".")
    if package == "ldm" and (CONF / f"{name}.yaml").is_file():
        check(name, values, sweep="-m" in flags or any("sweep=" in each for each in values))
    elif package == "ldm":
        check("train", values)  # preflight reads the config of a training
    elif package in ("data_prep", "experiments"):
        read_options(importlib.import_module(module).Options, values)
    else:
        source = found.with_suffix(".py") if found.with_suffix(".py").is_file() else found / "__main__.py"
        named = [each.partition("=")[0] for each in arguments if each.startswith("--") and each != "--help"]
        assert all(f'"{flag}"' in source.read_text() for flag in named), named


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: f"{each.page}: {shlex.join(each.words)}")
def test_a_command_of_the_documentation_can_be_typed(command):
    check_command(command.words)


def test_what_the_demo_says_to_type_next_can_be_typed():
    said = re.findall(r'^\t\t"  \$\(LDM\) (.*)"', (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(said) == 4
    for line in said:
        typed = line.replace("\\", "").replace("$(DEMO)", "runs/demo").replace("<your pictures>", "pictures")
        check_command(("python", "-m", *shlex.split(typed, comments=True)))


def test_a_command_that_a_fresh_clone_cant_run_says_what_it_needs():
    pages = ("README.md", "docs/")  # pages of experiments are records of what was run
    silent = [each.line for each in commands() if each.page.startswith(pages) and NEEDY.search(each.line)]
    assert [line for line in silent if not MARK.search(line) and "--cfg" not in line] == []


def test_a_file_that_an_unmarked_command_reads_is_here():
    read = re.compile(r"\b(?:prompts|image|mask|reference|pictures|bundle|weak)=(?!shipped$)([\w./]+)")
    for command in commands():
        if not MARK.search(command.line) and command.page.startswith(("README.md", "docs/")):
            for word in command.words:
                match = read.fullmatch(word)
                assert match is None or (ROOT / match[1]).exists(), command.line


@pytest.fixture(scope="module")
def site():
    """The hook that makes the site: it knows what links are, and which pages there are."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page, site):
    missing = [str(target) for target in site.links(page) if not target.exists()]
    assert missing == []


def test_every_page_is_on_the_site(site):
    named = {ROOT / name for name in site.pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])}
    assert named >= set(PAGES)
    assert all(path.is_file() for path in named)


@pytest.mark.parametrize("page", OWN, ids=name)
def test_pages_use_the_words_of_the_field(page):
    text = re.sub("`[^`]*`", "", BLOCK.sub("", page.read_text(encoding="utf-8")))
    assert [match[0] for match in ELSEWHERE.finditer(text)] == []


def test_files_and_folders_of_the_house_that_pages_name_exist():
    path = re.compile(r"`((?:ldm|conf|tests|data_prep|experiments|benchmarks|slurm|docs)/[\w./-]*\w)/?`")
    for page in PAGES:
        if page.name != "CHANGELOG.md":
            for name in path.findall(page.read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_sampler_that_a_page_shows_samples():
    code = next(blocks(ROOT / "docs" / "extend.md", "python"))
    namespace: dict = {}
    exec(compile(code, "extend.md", "exec"), namespace)
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    x0 = torch.full((2, 3), 0.25, dtype=torch.float64)
    end = namespace["mine"](lambda x, t: x0, lambda t: (1 - t, t), torch.randn(2, 3).double(), times)
    torch.testing.assert_close(end, x0)


def test_yaml_of_pages_is_yaml():
    for page in PAGES:
        for code in blocks(page, "yaml"):
            assert isinstance(yaml.safe_load(code), dict)
