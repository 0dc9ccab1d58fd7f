"""Facts about writing and removing: whole or not at all, and never through a link."""

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm.checkpoints.bundle_writer import save_tensors
from ldm.io.writing import (
    DRAFT,
    DiskFull,
    LinkRefused,
    append,
    discard,
    drafting,
    make_folder,
    new_folder,
    opened,
    sweep,
    write,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state(folder: Path) -> dict[str, tuple[bytes | None, int, int]]:
    """Bytes, time of change and number of names of everything below a folder, and of itself."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {
        str(path): (
            path.read_bytes() if path.is_file() else None,
            path.stat().st_mtime_ns,
            path.stat().st_nlink,
        )
        for path in paths
    }


@pytest.fixture
def victim(tmp_path):
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    (folder / ".tmp-precious").write_text("precious, too")
    return folder


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


def test_a_file_is_replaced_whole_or_not_at_all(own, monkeypatch):
    path = write(own / "a" / "b" / "file", "first", below=own)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        write(path, "second")
    assert path.read_text() == "first"
    assert names(path.parent) == ["file"]


def test_bytes_of_a_path_that_are_no_text_are_written_as_escapes(own):
    """As Python reads such a path: `caf\\xe9` of Latin-1 ends with a lone surrogate, which json can spell."""
    text = os.fsdecode(b"caf\xe9")
    path = write(own / "file", json.dumps({"root": text}, ensure_ascii=False))
    append(path, f" {text}")
    assert path.read_bytes() == rb'{"root": "caf\udce9"} caf\udce9'
    assert json.loads(path.read_bytes()[:21]) == {"root": text}


WRITERS = {
    "write": lambda path, below: write(path, "chosen text", below=below),
    "append": lambda path, below: append(path, "chosen text", below=below),
    "drafting": lambda path, below: drafting(path, below=below).__enter__(),
    "make_folder": lambda path, below: make_folder(path, below=below),
    "new_folder": lambda path, below: new_folder(path / "new", below=below).__enter__(),
    "sweep": lambda path, below: sweep(path, below=below),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("target", ["notes.txt", ".", "absent"])
def test_a_link_in_the_place_of_what_is_written_is_refused(victim, own, writer, target):
    before = state(victim)
    (own / "inner").symlink_to(victim / target)
    with pytest.raises(LinkRefused, match=f"^{own}/inner is a link to {victim}.*, and nothing is written"):
        WRITERS[writer](own / "inner", own)
    assert state(victim) == before
    assert names(own) == ["inner"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_on_the_way_is_refused(victim, own, writer):
    before = state(victim)
    (own / "inner").symlink_to(victim)
    with pytest.raises(LinkRefused, match="own/inner is a link to"):
        WRITERS[writer](own / "inner" / "deeper" / "x", own)
    assert state(victim) == before


@pytest.mark.parametrize("writer", WRITERS)
def test_names_that_lead_out_are_refused(victim, own, writer):
    before = state(victim)
    with pytest.raises(LinkRefused, match="leads out of its folder"):
        WRITERS[writer](own / ".." / "victim" / "x", own)
    assert state(victim) == before


def test_the_folder_that_the_user_named_may_be_a_link(own, tmp_path):
    named = tmp_path / "named"
    named.symlink_to(own)
    write(named / "deep" / "file", "text", below=named)
    with new_folder(named / "folder") as folder:
        (folder / "whole").write_text("text")
    sweep(named)
    assert (own / "deep" / "file").read_text() == "text"
    assert names(own) == ["deep", "folder"]


def test_a_link_that_takes_a_folders_place_meanwhile_changes_nothing(victim, own):
    """Between the check and the use the folder is swapped: what is written stays with the folder."""
    before = state(victim)
    with writing(own / "samples" / "notes.txt", below=own) as stream:
        (own / "samples").rename(own / "moved")
        (own / "samples").symlink_to(victim)
        stream.write(b"chosen text")
    assert (own / "moved" / "notes.txt").read_text() == "chosen text"
    with opened(own / "moved", below=own) as descriptor:
        (own / "moved").rename(own / "again")
        (own / "moved").symlink_to(victim)
        assert os.listdir(descriptor) == ["notes.txt"]
    with new_folder(own / "again" / "bundle", below=own) as draft:
        (own / "again").rename(own / "last")
        (own / "again").symlink_to(victim)
        (draft / "weights").write_text("weights")
    assert names(own / "last") == ["bundle", "notes.txt"]
    assert state(victim) == before


def test_removing_takes_links_and_leaves_what_they_lead_to(victim, own):
    before = state(victim)
    (own / "doomed").mkdir()
    for link in (own / "doomed" / "inner", own / "link", own / f"{DRAFT}link"):
        link.symlink_to(victim)
    (own / f"{DRAFT}file").hardlink_to(victim / "notes.txt")
    discard(own / "doomed", below=own)
    discard(own / "link", below=own)
    sweep(own)
    assert names(own) == []
    assert state(victim) == before


def test_the_other_name_of_a_file_keeps_its_bytes(victim, own):
    before = state(victim)["/".join((str(victim), "notes.txt"))][:2]
    for name in ("replaced", "appended"):
        (own / name).hardlink_to(victim / "notes.txt")
    write(own / "replaced", "new")
    append(own / "appended", ", and more")
    append(own / "appended", " of it")
    assert (own / "appended").read_text() == "precious, and more of it"
    assert (own / "replaced").read_text() == "new"
    assert state(victim)["/".join((str(victim), "notes.txt"))][:2] == before


def test_a_pipe_in_a_files_place_does_not_hang(own):
    os.mkfifo(own / "metrics.jsonl")
    with pytest.raises(LinkRefused, match="is a pipe or a device"):
        append(own / "metrics.jsonl", "line")


def test_unfinished_files_of_a_killed_process_are_swept_and_those_of_a_living_one_stay(own):
    code = f"""
import os, signal
from pathlib import Path
from ldm.io.writing import writing
with writing(Path({str(own)!r}) / "file") as stream:
    stream.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(own)) == 1
    with writing(own / "other") as stream:
        sweep(own, shared=True)
        assert len(names(own)) == 1
        stream.write(b"whole")
    assert (own / "other").read_bytes() == b"whole"


@pytest.fixture
def little_room():
    """Files of this process may have 4,096 bytes, as with a quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_told_before_anything_is_written(own, little_room):
    sentence = rf"^{own}/file can't be written \(.+\): 5,000 bytes are needed and [\d,]+ bytes are free"
    with pytest.raises(DiskFull, match=sentence) as caught, writing(own / "file", size=5000):
        pytest.fail("there is no room")
    assert caught.value.errno == errno.EFBIG
    assert names(own) == []


def test_a_disk_that_fills_meanwhile_leaves_nothing(own, little_room):
    (own / "log").write_text("line\n")
    with (
        pytest.raises(
            DiskFull, match=r"file can't be written \(.+\): [\d,]+ bytes are free on its disk; make"
        ),
        writing(own / "file") as stream,
    ):
        stream.write(bytes(5000))
    with pytest.raises(DiskFull, match="folder can't be written"), new_folder(own / "folder") as folder:
        (folder / "file").write_bytes(bytes(5000))
    with pytest.raises(DiskFull, match="log can't be written"):
        append(own / "log", "x" * 5000)
    assert names(own) == ["log"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "out"

    def fail_halfway(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise KeyError

    with pytest.raises(KeyError), new_folder(out) as folder:
        fail_halfway(folder)
    assert names(out.parent) == []
    with new_folder(out) as folder:
        (folder / "whole.txt").write_text("whole")
        assert not out.exists()
    assert (out / "whole.txt").read_text() == "whole"
    with pytest.raises(FileExistsError, match="exists already"), new_folder(out):
        pass
    with pytest.raises(OSError, match="can't be made"), new_folder(out / "whole.txt" / "x"):
        pass


def test_the_safetensors_library_tells_a_full_disk_like_any_other(own, little_room):
    tensors = {"weight": torch.zeros(2000)}
    sentence = rf"^{own}/(bundle|one) can't be written \(File too large\): [\d,]+ bytes are free on its disk"
    with pytest.raises(DiskFull, match=sentence), new_folder(own / "bundle") as folder:
        save_tensors(tensors, folder / "weights.safetensors")
    with pytest.raises(DiskFull, match=sentence), drafting(own / "one") as path:
        save_tensors(tensors, path)
    assert names(own) == []


def test_a_explain_full_disk_inside_a_folder_names_the_folder(own, little_room):
    sentence = rf"^{own}/out can't be written \(.+\): 5,000 bytes are needed"
    with pytest.raises(DiskFull, match=sentence), new_folder(own / "out") as folder:
        write(folder / "report.md", bytes(5000))
    with pytest.raises(DiskFull) as caught:
        write(own / "file", bytes(5000))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # from a worker


def test_more_than_the_disk_holds_is_not_begun(own):
    with pytest.raises(DiskFull, match="1,000,000,000,000,000 bytes are needed"):
        new_folder(own / "bundle", size=10**15).__enter__()
    with pytest.raises(DiskFull, match="1,000,000,000,000,000 bytes are needed"):
        drafting(own / "one", size=10**15).__enter__()
    assert names(own) == []
