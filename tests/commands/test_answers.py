"""Facts about how a command ends that goes wrong."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm import NotFinite, UserError
from ldm.commands.answers import answer_errors
from ldm.io.writing import DiskFull, NameTaken


def raising(error: BaseException):
    def action() -> None:
        raise error

    return action


def opening(path: Path):
    return lambda: path.open("rb").close()


@pytest.mark.parametrize(
    "error",
    [
        UserError("a sentence"),
        NotFinite("a sentence"),
        NameTaken("a sentence"),
        DiskFull(errno.ENOSPC, Path("/tmp/file"), 5),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/file"),
        OSError(errno.EROFS, os.strerror(errno.EROFS), ".tmp-1"),
        OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "x" * 300),
    ],
    ids=repr,
)
def test_a_mistake_or_a_disk_is_answered_in_one_sentence(error, capsys):
    with pytest.raises(SystemExit) as ended:
        answer_errors(raising(error))
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"ldm: {error}\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("torch's own"),
        TypeError("ours"),
        FileNotFoundError("no name of a file"),
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), 3),
        FloatingPointError("numpy's own"),
        OSError(errno.EBADF, os.strerror(errno.EBADF)),
    ],
    ids=repr,
)
def test_a_fault_of_ours_shows_its_traceback(error, capsys):
    with pytest.raises(type(error)) as caught:
        answer_errors(raising(error), named=lambda: ["", "auto", "runs"])
    assert caught.value is error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("missing", ["set", "set/train/0.tar", "."])
def test_a_file_that_is_missing_where_an_option_points_is_the_users(tmp_path, missing, capsys):
    named = tmp_path / "absent" / "set"
    with pytest.raises(SystemExit):
        answer_errors(opening(named.parent / missing), named=lambda: ["float32", str(named)])
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["other", "set-2"])
def test_a_file_that_is_missing_elsewhere_is_missing_by_our_fault(tmp_path, missing):
    with pytest.raises(FileNotFoundError):
        answer_errors(opening(tmp_path / missing), named=lambda: [str(tmp_path / "set")])


def test_a_relative_path_is_that_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        answer_errors(opening(tmp_path / "runs" / "config.yaml"), named=lambda: ["runs"])
    with pytest.raises(FileNotFoundError):
        answer_errors(opening(Path("config.yaml")), named=lambda: ["runs"])


@pytest.mark.parametrize(
    ("typed", "unbuffered"),
    [
        ("ldm.evaluate --help", ""),
        ("ldm.evaluate --help", "1"),
        ("ldm.evaluate --hydra-help", ""),  # Hydra exits by itself
        ("data_prep.emoji --help", ""),
    ],
)
def test_a_reader_that_has_gone_ends_a_command_without_a_traceback(typed, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)  # as in `| head`, which reads no further
    command, environment = (
        [sys.executable, "-m", *typed.split()],
        os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("verb", ["ldm.evaluate", "data_prep.emoji"])
def test_streams_that_a_shell_has_closed_change_no_status(closed, verb):
    for typed, status in (("--help", 0), ("unknown=1", 1)):
        command = f"{sys.executable} -m {verb} {typed} {closed}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.returncode == status
        assert ("there is no" in done.stderr) == (status == 1 and "2>&-" not in closed)


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    """What other packages or processes write to number 1 would else end up in it."""
    program = """
import sys
from ldm.commands.answers import answer_errors
def action():
    with open(sys.argv[1], "w") as opened:
        opened.write(str(opened.fileno()))
answer_errors(action)"""
    command = [sys.executable, "-c", program, tmp_path / "file"]
    subprocess.run(command, preexec_fn=lambda: [os.close(0), os.close(1)], check=True)
    assert int((tmp_path / "file").read_text()) > 2


def test_a_log_line_to_a_reader_that_has_gone_shows_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m ldm.evaluate --info | head -n 1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_write_is_escaped(encoding):
    command = [sys.executable, "-m", "ldm.evaluate", "né—=1"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 1
    assert done.stderr.startswith("ldm: né\\u2014=1 can't be read".encode(encoding, "backslashreplace"))
