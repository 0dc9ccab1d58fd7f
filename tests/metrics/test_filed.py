"""Tables that lie in files read like those in memory, take none of it, and leave nothing behind."""

import re
import sys
from pathlib import Path

import pytest
import torch

from ldm.metrics.filed import filed, give_back, mapped, read
from ldm.metrics.table import Table, blocks

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def rows_of(count, seed=0):
    return torch.randn(count, 700, generator=torch.Generator().manual_seed(seed))


def resident(table):
    """Bytes of a file that are in memory, by the system's word."""
    found, wanted = False, f"{table.untyped_storage().data_ptr():x}-"
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            found = line.startswith(wanted)
        elif found and line.startswith("Rss:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("the table lies in no mapping of its own")


@pytest.fixture
def parts():
    return [{"a": rows_of(count, count), "b": rows_of(count)[:, :3].double()} for count in (1, 1500, 20)]


def test_they_are_the_parts_below_each_other_to_the_bit(parts, tmp_path):
    found = filed(iter(parts), folder=tmp_path)
    assert found.keys() == {"a", "b"}
    for name, table in found.items():
        assert torch.equal(table, torch.cat([part[name] for part in parts]))


def test_a_part_is_asked_for_only_when_the_one_before_is_written():
    """Each part is the memory of the one before it, with other numbers."""
    room = torch.empty(5, 2)
    table = filed({"a": room.fill_(number)} for number in range(3))["a"]
    assert table.tolist() == [[number] * 2 for number in range(3) for _ in range(5)]


def test_no_part_and_no_row_make_no_table_and_an_empty_one():
    assert filed([]) == {}
    assert filed([{"a": torch.empty(0, 4)}])["a"].shape == (0, 4)


@linux
def test_their_files_have_no_names(tmp_path):
    table = filed([{"a": rows_of(10)}], folder=tmp_path / "new")["a"]
    assert torch.equal(table, rows_of(10))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path):
    (tmp_path / "file").write_text("")
    assert torch.equal(filed([{"a": rows_of(10)}], folder=tmp_path / "file" / "x")["a"], rows_of(10))


@linux
def test_what_was_read_is_not_kept_in_memory():
    table = filed([{"a": rows_of(5000)}])["a"]
    assert resident(table) == 0
    assert table.sum() == rows_of(5000).sum()
    assert resident(table) >= 4 * 700 * 5000
    give_back(table)
    assert resident(table) == 0
    assert torch.equal(read(table, torch.tensor([4000, 3, 3])), rows_of(5000)[[4000, 3, 3]])
    assert resident(table) == 0
    assert torch.equal(torch.cat(list(blocks(table))), rows_of(5000).double())
    assert resident(table) == 0
    shuffled = Table(parts=table.split(1024), order=torch.randperm(5000))
    assert torch.equal(torch.cat(list(blocks(shuffled))), rows_of(5000)[shuffled.order].double())
    assert resident(table) == 0


@linux
def test_a_part_is_given_back_alone():
    table = filed([{"a": rows_of(5000)}])["a"]
    table.sum()
    give_back(table[1000:4000])
    assert 0 <= 4 * 700 * 2000 - resident(table) < 2 * 2**16 + 2 * 2**12  # pages at its ends go with it


def test_tables_in_memory_stay_as_they_are():
    rows = rows_of(500)
    give_back(rows)
    give_back(rows[100:])
    assert torch.equal(rows, rows_of(500))


def test_numbers_may_stand_behind_others_in_their_file(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(b"eight by" + rows_of(30).numpy().tobytes())
    with path.open("rb") as file:
        table = mapped(file, shape=(30, 700), dtype=torch.float32, offset=8)
    assert torch.equal(table, rows_of(30))
    assert torch.equal(read(table, torch.tensor([29, 0])), rows_of(30)[[29, 0]])


@linux
def test_want_of_room_is_told_in_a_sentence():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(ValueError, match=r"no room for 0.0028 GB of features .*cache=<folder>"):
            filed([{"a": rows_of(1000)}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
