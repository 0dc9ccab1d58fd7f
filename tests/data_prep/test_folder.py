"""Facts about preparing any folder, and any WebDataset: they end as the same set."""

import json

import pytest

from benchmarks.faults.tars import members, pack
from benchmarks.faults.world import NUM_PICTURES, caption, encoded, flat, name_of, write_pictures, wrong_pairs
from data_prep import folder, webdataset
from data_prep.reports import read_report
from ldm.data import DataError
from ldm.data.index import ShardIndex
from ldm.data.shards import ShardReader
from ldm.data.tars import read_samples
from ldm.evaluation.pictures import PictureFolder

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


def test_a_text_beside_two_pictures_is_of_neither_and_both_are_named(pictures, tmp_path):
    for n in range(NUM_PICTURES):
        (pictures / "deep" / name_of(n)).with_suffix(".txt").write_text(caption(n))
    for n in (3, 4):
        (pictures / "deep" / f"p{n:02d}.PNG").write_bytes(encoded(flat(n), "PNG"))
    index = prepared(folder, tmp_path / "out", source=str(pictures), max_skip_share=0.5, val_share=0.0)
    assert {f"deep_p{n:02d}" for n in (3, 4)}.isdisjoint(ShardReader(index, split="train").keys())
    report = read_report(index.root)
    twins = ["deep/p03.PNG", "deep/p03.jpg", "deep/p04.PNG", "deep/p04.jpg"]
    assert report["pictures_left_out"] == {"several pictures or captions of one name": twins}
    assert report["source"]["pictures"] == NUM_PICTURES + 2


def test_what_systems_leave_behind_is_passed_over_in_folders_and_tars_alike(tmp_path):
    whole = [(f"set/{n}{end}", data) for n in range(3) for end, data in pair_of(n)]
    left = [f"set/._{n}{end}" for n in range(3) for end in (".jpg", ".txt")]
    left += ["__MACOSX/set/0.jpg", "__MACOSX/set/0.txt", ".hidden/0.jpg", "set/.DS_Store", "set/Thumbs.db"]
    members = [*whole, *((name, b"\0\5\x16\7") for name in left)]
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(pack(members))
    (tmp_path / "tars" / "._0.tar").write_bytes(b"\0\5\x16\7")
    for name, data in members:
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    keys = ["set_0", "set_1", "set_2"]
    for command, source in ((folder, "files"), (webdataset, "tars")):
        index = prepared(
            command, tmp_path / f"out_{source}", source=str(tmp_path / source), val_share=0, test_share=0
        )
        assert sorted(ShardReader(index, split="train").keys()) == keys
        assert read_report(index.root)["pictures_left_out"] == {}
    assert PictureFolder(tmp_path / "files").keys() == ["set/0", "set/1", "set/2"]
    streamed = [sample["__key__"] for sample in read_samples(str(tmp_path / "tars" / "0.tar"))]
    assert streamed == ["set/0", "set/1", "set/2"]


def pair_of(n: int) -> list[tuple[str, bytes]]:
    return [(".jpg", encoded(flat(n), "JPEG", quality=95)), (".txt", caption(n).encode())]


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
