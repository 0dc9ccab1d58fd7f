"""Tables that lie in files are read like those in memory, and leave nothing behind."""

import re
import sys
from pathlib import Path

import pytest
import torch

from ldm.metrics.mmap_tables import Table, blocks, store_tables

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
    found = store_tables(iter(parts), folder=tmp_path)
    assert found.keys() == {"a", "b"}
    for name, table in found.items():
        assert torch.equal(table, torch.cat([part[name] for part in parts]))


def test_a_part_is_asked_for_only_when_the_one_before_is_written():
    """Each part is the memory of the one before it, with other numbers."""
    room = torch.empty(5, 2)
    table = store_tables({"a": room.fill_(number)} for number in range(3))["a"]
    assert table.tolist() == [[number] * 2 for number in range(3) for _ in range(5)]


def test_no_part_and_no_row_make_no_table_and_an_empty_one():
    assert store_tables([]) == {}
    assert store_tables([{"a": torch.empty(0, 4)}])["a"].shape == (0, 4)


@linux
def test_their_files_have_no_names(tmp_path):
    table = store_tables([{"a": rows_of(10)}], folder=tmp_path / "new")["a"]
    assert torch.equal(table, rows_of(10))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path):
    (tmp_path / "file").write_text("")
    assert torch.equal(store_tables([{"a": rows_of(10)}], folder=tmp_path / "file" / "x")["a"], rows_of(10))


@linux
def test_a_table_takes_no_memory_before_it_is_read():
    table = store_tables([{"a": rows_of(5000)}])["a"]
    assert resident(table) == 0
    assert torch.equal(torch.cat(list(blocks(table))), rows_of(5000).double())
    assert resident(table) >= 4 * 700 * 5000  # pages of a file: the system takes them back as it likes
    shuffled = Table(parts=table.split(1024), order=torch.randperm(5000))
    assert torch.equal(torch.cat(list(blocks(shuffled))), rows_of(5000)[shuffled.order].double())


@linux
def test_want_of_room_is_told_in_a_sentence():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(ValueError, match=r"no room for 0.0028 GB of features .*cache=<folder>"):
            store_tables([{"a": rows_of(1000)}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
