"""Facts about saving training states: whatever happens meanwhile, a whole state is there."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from ldm.checkpoints import training_state
from ldm.checkpoints.training_state import discard_damaged, newest_state, save_state
from ldm.io.writing import LinkRefused


def save(root: Path, step: int, content: bytes = b"state", *, keep: int = 2) -> Path:
    return save_state(root, step, lambda path: path.write_bytes(content), keep=keep)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_state_is_found(tmp_path):
    assert newest_state(tmp_path) is None
    for step in (9, 10, 100):
        folder = save(tmp_path, step, str(step).encode())
        assert newest_state(tmp_path) == folder / "state.ckpt"
    assert newest_state(tmp_path).read_bytes() == b"100"


def test_only_the_newest_are_kept_beside_a_pointer(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["newest", "step=00000004", "step=00000005"]
    assert (tmp_path / "newest").read_text() == "step=00000005\n"


def test_the_manifest_says_what_the_state_is(tmp_path):
    manifest = json.loads((save(tmp_path, 3, b"12345") / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert manifest["files"]["state.ckpt"]["bytes"] == 5
    assert len(manifest["files"]["state.ckpt"]["sha256"]) == 64


def test_a_state_may_be_a_folder_of_shards(tmp_path):
    def write(path: Path) -> None:
        path.mkdir()
        for rank in range(2):
            (path / f"rank{rank}").write_bytes(bytes([rank]))

    folder = save_state(tmp_path, 1, write, keep=2)
    assert newest_state(tmp_path) == folder / "state.ckpt"
    (folder / "state.ckpt" / "rank1").write_bytes(b"x")
    assert newest_state(tmp_path) is None


def test_a_manifest_of_version_0_1_0_is_read(tmp_path):
    path = save(tmp_path, 1) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({"step": 1} | manifest["files"]["state.ckpt"]))
    assert newest_state(tmp_path) == path.with_name("state.ckpt")


def test_everything_is_on_disk_before_the_next_thing_happens(tmp_path, monkeypatch):
    """State and manifest, their folder, its name, that folder's own, the pointer; then the oldest goes."""
    events = []
    save(tmp_path, 1)

    def recorded(module, name):
        function = getattr(module, name)

        def call(first, *rest, **options):
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first
            events.append((name, *map(_name, (path, *rest))))
            return function(first, *rest, **options)

        monkeypatch.setattr(module, name, call)

    for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree")):
        recorded(module, name)
    save(tmp_path, 2, keep=1)
    root = tmp_path.name
    assert events == [
        ("fsync", "state.ckpt"),
        ("fsync", "manifest.json"),
        ("fsync", "draft"),
        ("rename", "draft", "step=00000002"),
        ("fsync", root),
        ("fsync", "draft"),
        ("replace", "draft", "newest"),
        ("fsync", root),
        ("rename", "step=00000001", "draft"),
        ("rmtree", "draft"),
    ]


def _name(path: object) -> str:
    name = Path(str(path)).name
    return "draft" if name.startswith(".tmp-") else name


def test_a_whole_state_of_the_same_step_stays(tmp_path):
    folder = save(tmp_path, 2, b"first")
    assert save(tmp_path, 2, b"second") == folder
    assert newest_state(tmp_path).read_bytes() == b"first"
    assert names(tmp_path) == ["newest", "step=00000002"]


def test_a_torn_state_of_the_same_step_is_replaced(tmp_path):
    folder = save(tmp_path, 2, b"torn")
    (folder / "manifest.json").unlink()
    save(tmp_path, 2, b"whole")
    assert newest_state(tmp_path).read_bytes() == b"whole"


def full(path: Path) -> None:
    path.write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_earlier_states_and_is_told_in_a_sentence(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    sentence = r"saving the checkpoint of step 3 failed \(No space left on device; \d+ MB are free there\)"
    with pytest.raises(OSError, match=sentence):
        save_state(tmp_path, 3, full, keep=1)
    assert names(tmp_path) == ["newest", "step=00000001", "step=00000002"]
    assert newest_state(tmp_path).parent.name == "step=00000002"


def test_a_disk_without_room_for_another_state_is_not_written_to(tmp_path, monkeypatch):
    save(tmp_path, 1, bytes(2_000_000))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(3_000_000, 2e6, 1_000_000)
    )
    with pytest.raises(OSError, match=r"No space left for the 2\.0 MB of a checkpoint; 1 MB are free there"):
        save_state(tmp_path, 2, lambda path: pytest.fail("it was written"), keep=2)


@pytest.mark.parametrize("file", ["state.ckpt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_a_damaged_newest_state_is_passed_over_with_a_word(tmp_path, capsys, file, damage):
    save(tmp_path, 1, b"first")
    path = save(tmp_path, 2, b"second") / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"flip": content, "cut": content[:-2], "empty": b""}[damage])
    assert newest_state(tmp_path).read_bytes() == b"first"
    said = capsys.readouterr().out
    assert "step=00000002 is damaged (its manifest does not match); going back to step=00000001" in said


EMPTY = '{"step": 2, "files": {}}'


@pytest.mark.parametrize(
    "manifest", ["[]", "3", "null", '{"files": []}', '{"step": 2, "files": {"x": 1}}', EMPTY]
)
def test_a_manifest_that_is_something_else_is_no_manifest(tmp_path, manifest):
    (save(tmp_path, 2) / "manifest.json").write_text(manifest)
    assert newest_state(tmp_path) is None


def test_a_state_under_the_name_of_another_step_is_none(tmp_path):
    save(tmp_path, 1).rename(tmp_path / "step=00000009")
    assert newest_state(tmp_path) is None


def test_it_is_said_when_the_last_state_is_gone_and_when_there_is_none(tmp_path, capsys):
    for step in (1, 2):
        save(tmp_path, step)
    shutil.rmtree(tmp_path / "step=00000002")
    assert newest_state(tmp_path).parent.name == "step=00000001"
    said = capsys.readouterr().out
    assert "step=00000002, the last one that was saved, is gone; going back to step=00000001" in said
    (tmp_path / "step=00000001" / "manifest.json").unlink()
    assert newest_state(tmp_path) is None
    assert "the training starts again" in capsys.readouterr().out


def test_nothing_is_said_of_whole_states(tmp_path, capsys):
    for step in (1, 2):
        save(tmp_path, step)
    newest_state(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("pointer", ["", "step=1", "../step=00000009", "\x00"])
def test_a_pointer_to_nowhere_harms_nothing(tmp_path, pointer):
    save(tmp_path, 1)
    (tmp_path / "newest").write_text(pointer)
    assert newest_state(tmp_path).parent.name == "step=00000001"


def test_a_damaged_state_takes_the_place_of_no_whole_one(tmp_path):
    """Resumed from step 1 beside a damaged step 3, a save of step 2 keeps both whole ones."""
    save(tmp_path, 1)
    (save(tmp_path, 3) / "state.ckpt").write_bytes(b"other")
    save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["newest", "step=00000002", "step=00000003"]
    discard_damaged(tmp_path, after=2)
    assert names(tmp_path) == ["newest", "step=00000002"]


def test_only_damaged_states_are_discarded(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    (tmp_path / "step=00000001" / "state.ckpt").unlink()
    (tmp_path / "step=00000002" / "state.ckpt").unlink()
    discard_damaged(tmp_path, after=1)
    assert names(tmp_path) == ["newest", "step=00000001", "step=00000003"]


def test_other_files_are_left_alone(tmp_path):
    for name in ("step=1", "step=abc", "notes.txt", "step=00000001.bak"):
        (tmp_path / name).mkdir()
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == [
        "newest", "notes.txt", "step=00000001.bak", "step=00000003", "step=1", "step=abc"
    ]  # fmt: skip
    assert [path.name for path in training_state.states(tmp_path)] == ["step=00000003"]


def linked(root: Path, step: int, elsewhere: Path) -> Path:
    """Moves a state to another disk and leaves a link in its place."""
    folder = save(root, step)
    folder.rename(elsewhere / folder.name)
    folder.symlink_to(elsewhere / folder.name)
    return folder


def test_a_state_that_is_a_link_stays_and_later_ones_are_saved(tmp_path, capsys):
    root, elsewhere = tmp_path / "states", tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = linked(root, 1, elsewhere)
    assert newest_state(root).parent == folder
    for step in (2, 3, 4, 5):
        save(root, step, keep=2)
    assert names(root) == ["newest", "step=00000001", "step=00000004", "step=00000005"]
    assert names(elsewhere / folder.name) == ["manifest.json", "state.ckpt"]
    said = f"{folder} is a link to {elsewhere / folder.name}: it is left as it is\n"
    assert capsys.readouterr().out == said


def test_a_damaged_state_that_is_a_link_is_not_discarded(tmp_path):
    root, elsewhere = tmp_path / "states", tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = linked(root, 2, elsewhere)
    (elsewhere / folder.name / "state.ckpt").unlink()
    discard_damaged(root, after=1)
    assert folder.is_symlink()
    save(root, 2, b"new")
    assert newest_state(root).read_bytes() == b"new"
    assert names(elsewhere / folder.name) == ["manifest.json"]


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/newest", "checkpoints/.tmp-x"])
def test_what_a_link_in_a_run_leads_to_keeps_its_bytes(tmp_path, name):
    victim, run = tmp_path / "victim", tmp_path / "run"
    for step in (1, 2, 3):
        save(victim, step, keep=3)
    (victim / ".tmp-precious").mkdir()
    kept = sorted(victim.rglob("*"))
    link = run / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    if name.endswith(".tmp-x"):
        save(run / "checkpoints", 4, keep=1)
    else:
        with pytest.raises(LinkRefused, match=f"{link} is a link to {victim}, and nothing is written"):
            save(run / "checkpoints", 4, keep=1)
    assert sorted(victim.rglob("*")) == kept
