"""Facts about preparing any folder, and any WebDataset: they end as the same set."""

import json

import pytest

from benchmarks.faults.tars import members, pack
from benchmarks.faults.world import NUM_PICTURES, caption, encoded, flat, name_of, write_pictures, wrong_pairs
from data_prep import folder, webdataset
from ldm.data.index import DataError, ShardIndex
from ldm.data.shards import ShardReader

ROWS = [(f"deep/{name_of(n)}", caption(n), "train" if n < 12 else "val") for n in range(NUM_PICTURES)]
FILES = {
    "c.csv": "image,caption,part\n" + "".join(f'{a},"{b}",{c}\n' for a, b, c in ROWS),
    "c.tsv": "image\tcaption\tpart\n" + "".join(f"{a}\t{b}\t{c}\n" for a, b, c in ROWS),
    "c.jsonl": "".join(json.dumps({"image": a, "caption": [b], "part": c}) + "\n" for a, b, c in ROWS),
}


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pictures" / "deep")
    return tmp_path / "pictures"


def prepared(command, out, **options) -> ShardIndex:
    command.main(command.Options(out=str(out), num_workers=0, **options))
    return ShardIndex.load(out)


@pytest.mark.parametrize("file", FILES)
def test_captions_come_from_tables_and_lines_of_json(pictures, tmp_path, file):
    (tmp_path / file).write_text(FILES[file])
    index = prepared(
        folder, tmp_path / "out", source=str(pictures), captions=str(tmp_path / file), split_column="part"
    )
    assert ShardReader(index, split="val").keys() == [f"deep_p{n:02d}" for n in range(12, 16)]
    assert ShardReader(index, split="train").record(3)["texts"] == [caption(3)]
    assert wrong_pairs(index.root) == 0


def test_captions_come_from_text_files_a_line_each(pictures, tmp_path):
    for n in range(NUM_PICTURES):
        path = (pictures / "deep" / name_of(n)).with_suffix(".txt")
        path.write_text(f"{caption(n, 0)}\n\n{caption(n, 1)}\n")
    index = prepared(folder, tmp_path / "out", source=str(pictures))
    record = ShardReader(index, split="train").record(0)
    number = int(record["key"][-2:])
    assert record["texts"] == [caption(number, 0), caption(number, 1)]
    assert record["comment_nos"] == [0, 1]
    assert wrong_pairs(index.root) == 0


def test_a_column_that_is_not_there_is_named_with_the_nearest(pictures, tmp_path):
    (tmp_path / "c.csv").write_text(FILES["c.csv"].replace("caption,", "captions,"))
    with pytest.raises(DataError, match="no column 'caption', did you mean 'captions'"):
        prepared(folder, tmp_path / "out", source=str(pictures), captions=str(tmp_path / "c.csv"))


def test_two_pictures_of_one_key_are_not_mixed(pictures, tmp_path):
    (pictures / "deep" / "p03.png").write_bytes(encoded(flat(9), "PNG"))
    (tmp_path / "c.csv").write_text(FILES["c.csv"] + "deep/p03.png,picture 9,train\n")
    options = {"source": str(pictures), "captions": str(tmp_path / "c.csv")}
    with pytest.raises(DataError, match="1 of 17 pictures are left out, most as 'key of another picture'"):
        prepared(folder, tmp_path / "out", **options)
    assert wrong_pairs(prepared(folder, tmp_path / "out", max_skip_share=0.1, **options).root) == 0


def test_a_webdataset_comes_from_a_folder_and_from_a_pattern(tmp_path):
    found = members()
    for number in range(2):
        (tmp_path / f"{number:05d}.tar").write_bytes(pack(found[number * 24 : number * 24 + 24]))
    sets = [
        prepared(webdataset, tmp_path / name, source=source)
        for name, source in (("a", str(tmp_path)), ("b", f"{tmp_path}/{{00000..00001}}.tar"))
    ]
    assert sets[0].sha256 == sets[1].sha256
    assert wrong_pairs(sets[0].root) == 0


def test_our_own_shards_are_a_webdataset_and_keep_their_splits(prepare, tmp_path):
    first = prepare(val_share=0.25)
    again = prepared(webdataset, tmp_path / "again", source=str(first.root), samples_per_shard=3)
    assert [(s.split, s.keys) for s in again.shards] == [(s.split, s.keys) for s in first.shards]
    for split in ("train", "val"):
        ours, theirs = ShardReader(first, split=split), ShardReader(again, split=split)
        for number in range(len(ours)):
            assert ours.image(number) == theirs.image(number)
            assert ours.record(number)["texts"] == theirs.record(number)["texts"]


@pytest.mark.parametrize("source", ["pipe:touch x", "http://example.com/a.tar", "nowhere/{0..3}.tar", ""])
def test_only_local_files_are_ever_opened(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"is no file, nor a folder|source= is missing"):
        prepared(webdataset, tmp_path / "out", source=source)
    assert list(tmp_path.iterdir()) == []
