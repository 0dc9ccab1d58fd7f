"""The index of a large set: its samples are rows of a mapped file, read and checked one by one."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.slopes import write_index
from data_prep.verify import check_shard
from ldm.data import DataError
from ldm.data.index import ROWS, ShardIndex
from ldm.data.shards import ShardReader


@pytest.fixture
def large(copy_emoji, monkeypatch):
    """A set of 24 samples whose index is written as that of a large one."""
    monkeypatch.setattr("ldm.data.index.MOST_LISTED", 4)
    index = ShardIndex.load(copy_emoji())
    index.save()
    return index  # as it was read: its samples are lists


def change(index: ShardIndex, edit) -> None:
    rows = np.load(index.root / ROWS)
    np.save(index.root / ROWS, edit(rows))


def test_a_large_set_is_read_as_a_small_one(large):
    mapped = ShardIndex.load(large.root)
    assert "keys" not in json.loads((large.root / "shards.json").read_text())["shards"][0]
    assert (mapped.sha256, mapped.splits) == (large.sha256, large.splits)
    for split in large.splits:
        small, same = (ShardReader(index, split=split) for index in (large, mapped))
        assert same.keys() == small.keys()
        for number in (*range(len(small)), -1):
            assert (same.image(number), same.record(number)) == (small.image(number), small.record(number))
        with pytest.raises(IndexError):
            same.image(len(small))
    assert not any(check_shard((mapped.root, shard)).problems for shard in mapped.shards)


def test_opening_a_large_index_takes_bytes_for_shards_and_none_for_samples(tmp_path):
    write_index(tmp_path, 40)
    tracemalloc.start()
    index = ShardIndex.load(tmp_path)
    reader = ShardReader(index, split="train")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(reader) == 40 * 1024
    assert held < 40 * 1024 * 4  # bytes: a thousand for a shard; lists of keys and places took 800 a sample
    assert reader.damaged(40 * 1024 - 1, "x").args[0].split("'")[1] == "000039001023"


def moved(name, value):
    def edit(rows):
        rows[name][0] = value
        return rows

    return edit


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda rows: rows[:-1], "is not a readable shard index .*holds something else than 24 samples"),
        (lambda rows: rows["images"], "is not a readable shard index"),
        (lambda rows: rows.astype([(n, rows.dtype[n].base.str.replace("i", "f"), rows.dtype[n].shape)
                                   for n in rows.dtype.names]), "holds something else than 24 samples"),
        (moved("images", (512, 2**62)), "sample .* is not where the index says"),
        (moved("images", (-512, 8)), "sample .* is not where the index says"),
        (moved("keys", b"\xff"), "sample '.' is not where the index says"),
        (moved("checksums", (1, 1)), "sample .* differs from what was prepared"),
    ],
)  # fmt: skip
def test_damaged_rows_are_refused(large, edit, sentence):
    change(large, edit)
    with pytest.raises(DataError, match=sentence):
        ShardReader(ShardIndex.load(large.root), split="train").image(0)


def test_missing_rows_are_refused_and_a_key_that_comes_twice_is_not_written(large):
    (large.root / ROWS).unlink()
    with pytest.raises(DataError, match=r"is not a readable shard index .*No such file"):
        ShardIndex.load(large.root)
    first = large.shards[0]
    twice = replace(first, keys=[first.keys[1], *first.keys[1:]])
    with pytest.raises(DataError, match="has 2 samples"):
        replace(large, shards=(twice, *large.shards[1:])).save()
    assert not (large.root / ROWS).exists()
