"""Facts about options typed as key=value: a text is kept as it is, all else is read by type or refused."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from benchmarks.faults.world import write_pictures
from data_prep import emoji, flickr30k, folder, latents, verify, webdataset
from data_prep.command_line import KINDS, command_line, help_of, option, read_options
from experiments import report, sweeps
from ldm import UserError
from ldm.data.index import ShardIndex


@dataclass(kw_only=True)
class Options:
    """One option of each type, and a text that may not be empty."""

    source: str = option("", "Where from.")
    root: str = option("data", "Where to.")
    count: int = option(3, "How many.")
    share: float = option(0.5, "How much.")
    flip: bool = option(False, "Whether.")


@pytest.mark.parametrize(
    "text",
    [
        "/a/holiday #2/pics",
        "0755",
        "1_000",
        "/tmp/Notes: 2024/pics",
        "/tmp/cash${x}",
        "a=b",
        " blanks ",
        "'quoted'",
        '"quoted"',
        "[1,2]",
        "{a: b}",
        "null",
        "~",
        "true",
        "1e3",
        "2024-01-01",
        "*a",
        "&a",
        "!!python/object",
        "\\n",
        "two\nlines",
        "caf\udce9",
        "",
    ],
)
def test_a_text_is_what_stands_after_the_first_equals_sign(text):
    assert read_options(Options, [f"source={text}"]).source == text


def test_numbers_and_switches_are_read_by_their_type():
    options = read_options(Options, ["count=-7", "share=1e-3", "flip=True"])
    assert (options.count, options.share, options.flip) == (-7, 0.001, True)
    assert read_options(Options, ["share=2"]).share == 2.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["count=0755"], "count=0755 is not a whole number"),
        (["count=1_000"], "count=1_000 is not a whole number"),
        (["count=1.0"], "count=1.0 is not a whole number"),
        (["count= 1"], "count= 1 is not a whole number"),
        (["count=１"], "is not a whole number"),
        (["count=" + "9" * 19], "of at most 18 digits"),
        (["count="], "count= is empty: write a whole number.* leave it out for 3"),
        (["share=nan"], "share=nan is not a finite decimal number"),
        (["share=inf"], "share=inf is not a finite"),
        (["share=1:30"], "share=1:30 is not a finite"),
        (["flip=yes"], "flip=yes is not true or false"),
        (["root="], "root= is empty: write a text, or leave it out for data"),
        (["source"], "source has no value: write source=TEXT"),
        (["source=a", "source=b"], "source= is given twice"),
        (["sourec=a"], "there is no option 'sourec', did you mean 'source'"),
        (["+source=a"], "there is no option '\\+source', did you mean 'source'"),
        (["source.x=a"], "there is no option 'source.x'"),
        (["=a"], "there is no option ''"),
    ],
)
def test_what_can_not_be_read_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_options(Options, arguments)


def test_a_refusal_is_one_line_that_shows_a_path_as_it_is(capsys):
    def refuse(options: Options) -> None:
        raise UserError(f"{options.source} is no folder:\n    name another")

    with pytest.raises(SystemExit) as ended:
        command_line(refuse, Options, ["source=two  blanks\ta tab\x1b[31m caf\udce9"])
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert shown == "ldm: two  blanks\\ta tab\\x1b[31m caf\\udce9 is no folder: name another\n"


@pytest.mark.parametrize("command", [emoji, flickr30k, folder, latents, verify, webdataset, report, sweeps])
def test_help_names_every_option_with_its_type_default_and_a_sentence(command, capsys):
    command_line(command.main, command.Options, ["root=x", "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(command.__doc__)
    for own in fields(command.Options):
        assert f"  {own.name}={KINDS[own.type].name}" in shown
        assert own.metadata["help"].endswith(".")
    assert "(" not in help_of(Options)
    assert "  count=INTEGER           How many. Default: 3." in help_of(Options)


def test_folders_with_any_name_are_prepared_and_written(tmp_path):
    write_pictures(tmp_path / "holiday #2" / "0755")
    shutil.copytree(tmp_path / "holiday #2" / "0755", tmp_path / "holiday")
    for path in (tmp_path / "holiday #2" / "0755").iterdir():
        path.with_suffix(".txt").write_text("a picture")
    out = os.fsencode(tmp_path) + b"/sets #1: caf\xe9 ${x}"
    command = [sys.executable, "-m", "data_prep.folder", "source=0755", b"out=" + out, "num_workers=0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=tmp_path / "holiday #2", env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(ShardIndex.load(Path(os.fsdecode(out))).split("train")[0].keys) == 14


@dataclass(kw_only=True)
class Placed:
    """Two values that may be typed alone, and one that may not."""

    a: str = option("", "The first.", place=True)
    b: str = option("", "The second.", place=True)
    level: float = option(0.95, "A number.")


def test_values_typed_alone_take_their_places_in_order():
    found = read_options(Placed, ["runs/x", "level=0.9", "runs/y"])
    assert found == Placed(a="runs/x", b="runs/y", level=0.9)
    assert read_options(Placed, ["b=runs/y", "runs/x"]) == Placed(a="runs/x", b="runs/y")
    with pytest.raises(UserError, match="a= is given twice"):
        read_options(Placed, ["runs/x", "a=runs/y"])
    with pytest.raises(UserError, match="there is no option 'runs/z'"):
        read_options(Placed, ["runs/x", "runs/y", "runs/z"])
