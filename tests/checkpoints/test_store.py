"""Facts about saving training states: whatever happens meanwhile, a whole state is there."""

import errno
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.checkpoints.store import newest_state, save_state

ROOT = Path(__file__).parents[2]

# saves a state in a process that dies, as by SIGKILL, when it is about to make its n-th call to the disk
DYING = """
import os, shutil, sys
from pathlib import Path
from ldm.checkpoints.store import save_state

left = int(sys.argv[2])

def counted(function):
    def call(*args, **options):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return function(*args, **options)
    return call

Path.mkdir, Path.write_bytes, Path.write_text = map(counted, (Path.mkdir, Path.write_bytes, Path.write_text))
os.fsync, Path.rename, shutil.rmtree = map(counted, (os.fsync, Path.rename, shutil.rmtree))
save_state(Path(sys.argv[1]), 2, lambda path: path.write_bytes(b"second"), keep=1)
print(left)
"""
CALLS = 10  # two folders, state, fsync, manifest, fsync, fsync, rename, fsync, the removal of the first state


def save(root: Path, step: int, content: bytes = b"state", *, keep: int = 2) -> Path:
    return save_state(root, step, lambda path: path.write_bytes(content), keep=keep)


def steps(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_state_is_found(tmp_path):
    assert newest_state(tmp_path) is None
    for step in (9, 10, 100):
        folder = save(tmp_path, step, str(step).encode())
        assert newest_state(tmp_path) == folder / "state.ckpt"
    assert newest_state(tmp_path).read_bytes() == b"100"


def test_only_the_newest_are_kept(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == ["step=00000004", "step=00000005"]


def test_the_manifest_says_what_the_state_is(tmp_path):
    manifest = json.loads((save(tmp_path, 3, b"12345") / "manifest.json").read_text())
    assert (manifest["step"], manifest["bytes"], len(manifest["sha256"])) == (3, 5, 64)


def die(root: Path, calls: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", DYING, str(root), str(calls)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("calls", range(CALLS))
def test_a_process_that_dies_at_any_moment_leaves_a_whole_state(tmp_path, calls):
    save(tmp_path, 1, b"first")
    assert die(tmp_path, calls).returncode == 9
    expected = b"first" if calls <= 7 else b"second"  # the eighth call is the rename
    assert newest_state(tmp_path).read_bytes() == expected
    save(tmp_path, 3, b"third", keep=1)
    assert newest_state(tmp_path).read_bytes() == b"third"
    assert steps(tmp_path) == ["step=00000003"]  # what the dead process left is gone


def test_that_was_every_moment(tmp_path):
    save(tmp_path, 1, b"first")
    assert die(tmp_path, CALLS).stdout == "0\n"


def full(path: Path) -> None:
    path.write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_earlier_states(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, 3, full, keep=1)
    assert steps(tmp_path) == ["step=00000001", "step=00000002"]
    assert newest_state(tmp_path).parent.name == "step=00000002"


def test_a_limit_on_file_sizes_leaves_the_earlier_states(tmp_path):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path) == ["step=00000001"]


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
    assert "step=00000002 is damaged" in capsys.readouterr().out


def test_a_torn_state_of_the_same_step_is_replaced(tmp_path):
    folder = save(tmp_path, 2, b"torn")
    (folder / "manifest.json").unlink()
    save(tmp_path, 2, b"whole")
    assert newest_state(tmp_path).read_bytes() == b"whole"
