"""`--help`: what a command prints about itself, from its yaml alone."""

import re
import shlex
import subprocess
import sys

import pytest

from ldm.commands.answers import PAGES, help_of
from ldm.config import CONF, check

COMMANDS = sorted(PAGES)


def examples(name: str) -> list[list[str]]:
    """The arguments of each example; a comment stands two blanks behind it."""
    lines = re.findall(rf"^  python -m ldm\.{name}(.*)$", help_of(name, CONF), re.MULTILINE)
    return [shlex.split(re.split(r"\s{2,}", line)[0]) for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_it_has_examples_keys_groups_and_the_page(name):
    text = help_of(name, CONF)
    assert len(examples(name)) >= 6
    assert (CONF.parent / "docs" / f"{PAGES[name]}.md").is_file()
    assert f"docs/{PAGES[name]}.md" in text
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize("name", COMMANDS)
def test_its_examples_can_be_typed(name):
    for arguments in examples(name):
        check(name, [each for each in arguments if each not in ("--cfg", "job")])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_has_a_comment(name):
    keys = help_of(name, CONF).split("== Keys: key=value ==\n")[1].split("\n== Groups")[0]
    silent = [line for line in keys.splitlines() if line.strip() and "#" not in line]
    assert {line.split(":")[0].strip() for line in silent} <= {"summary", "batch_size", "num_steps", "scales"}


def test_groups_show_their_options_and_the_default():
    text = help_of("train", CONF)
    assert "optimizer: [adamw], muon" in text
    assert re.search(r"^\+experiment: .*emoji", text, re.MULTILINE)
    assert "+grid" not in text
    assert "+grid" in help_of("sample", CONF)


def test_a_command_lists_its_own_sweeps():
    (line,) = re.findall(r"^\+sweep: (.*)", help_of("evaluate", CONF), re.MULTILINE)
    assert line == "guidance, sampler"


def test_the_command_prints_it():
    done = subprocess.run(
        [sys.executable, "-m", "ldm.export", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout == help_of("export", CONF) + "\n"


@pytest.mark.parametrize(
    "typed", [["--info"], ["+sampler=ddim", "--info"], ["--info", "defaults", "+sampler=ddim"]]
)
def test_an_option_takes_no_override_for_its_value(typed):
    command = [sys.executable, "-m", "ldm.evaluate", *typed]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Defaults List" in done.stdout
    assert ("| sampler/ddim " in done.stdout) == ("+sampler=ddim" in typed)


def test_a_config_is_shown_of_one_point_alone(command):
    ended = command("ldm.train", "-m", "seed=1,2", "--cfg", "job", status=1)
    assert ended.sentence == "a sweep has one config per point: leave out -m to see one with --cfg or --info"
