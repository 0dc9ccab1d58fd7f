"""Facts about folders as other tools leave them: what is recognised, and what is refused as ambiguous."""

import json
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from benchmarks.faults.tars import members, pack
from benchmarks.faults.world import NUM_PICTURES, caption, encoded, flat, name_of, write_pictures, wrong_pairs
from data_prep import folder
from data_prep.reports import read_report
from ldm.data import DataError
from ldm.data.index import ShardIndex
from ldm.data.shards import ShardReader

NUMBERS = range(NUM_PICTURES)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def prepared(source, tmp_path):
    """`prepared(**options)`: the set of that folder, every pair of which is right."""

    def run(**options) -> ShardIndex:
        defaults = {"source": str(source), "num_workers": 0, "val_share": 0.0, "test_share": 0.0}
        folder.main(folder.Options(out=str(tmp_path / "out"), **(defaults | options)))
        assert wrong_pairs(tmp_path / "out") == 0
        return ShardIndex.load(tmp_path / "out")

    return run


def texts(index: ShardIndex, split: str = "train") -> dict[str, list[str]]:
    reader = ShardReader(index, split=split)
    return {record["key"]: record["texts"] for record in map(reader.record, range(len(reader)))}


def put(source, suffix, content) -> None:
    for n in NUMBERS:
        path = (source / name_of(n)).with_suffix(suffix)
        path.write_text(content(n))


METADATA = {
    "metadata.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "metadata.csv": lambda rows: (
        "file_name,text\n" + "".join(f"{a},{b}\n" for a, b in map(dict.values, rows))
    ).encode(),
}


@pytest.mark.parametrize("name", [*METADATA, "metadata.parquet"])
def test_metadata_of_an_imagefolder(source, prepared, name, capsys):
    write_pictures(source / "deep")
    rows = [{"file_name": f"deep/{name_of(n)}", "text": caption(n)} for n in NUMBERS]
    if name in METADATA:
        (source / name).write_bytes(METADATA[name](rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), source / name)
    assert texts(prepared())["deep_p03"] == [caption(3)]
    assert (
        f"1 metadata files, {name} the first; split drawn with seed=0; 1 caption a picture"
        in capsys.readouterr().out
    )


def test_metadata_in_each_split_folder_with_lists_of_texts(source, prepared):
    for split, numbers in (("train", NUMBERS[:12]), ("validation", NUMBERS[12:])):
        (source / split).mkdir()
        for n in numbers:
            (source / split / name_of(n)).write_bytes(encoded(flat(n), "JPEG", quality=95))
        rows = ({"image_file_name": name_of(n), "text": [caption(n, 0), caption(n, 1)]} for n in numbers)
        (source / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = prepared()
    assert len(texts(index)) == 12
    assert texts(index, "val")["validation_p13"] == [caption(13, 0), caption(13, 1)]


def test_two_metadata_files_in_one_folder_are_refused_and_a_path_chooses(source, prepared):
    write_pictures(source / "deep")
    write_pictures(source / "other")
    (source / "deep" / "metadata.csv").write_text("file_name,text\np00.jpg,wrong\n")
    rows = ({"file_name": name_of(n), "text": caption(n)} for n in NUMBERS)
    (source / "deep" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"deep/metadata\.csv and another in the same folder: name one with"):
        prepared()
    index = prepared(captions=str(source / "deep" / "metadata.jsonl"), max_skip_share=0.6)
    assert texts(index)["deep_p03"] == [caption(3)]
    assert not any(key.startswith("other") for key in texts(index))


@pytest.mark.parametrize("suffix", [".caption", ".txt"])
def test_text_files_beside_the_pictures_have_a_caption_a_line(source, prepared, suffix, capsys):
    write_pictures(source)
    put(source, suffix, lambda n: f"{caption(n, 0)}\r\n\r\n{caption(n, 1)}\n" if n else caption(0))
    assert texts(prepared())["p03"] == [caption(3, 0), caption(3, 1)]
    assert (
        f"16 {suffix} files beside the pictures; split drawn with seed=0; 1 to 2 captions"
        in capsys.readouterr().out
    )


def test_files_of_img2dataset(source, prepared):
    (source / "00000").mkdir()
    for name, data in members():
        (source / "00000" / name).write_bytes(data)
    parquet.write_table(pa.table({"url": ["x"], "caption": ["y"]}), source / "00000.parquet")
    index = prepared()
    assert texts(index)["00000_000000003"] == [caption(3)]
    assert read_report(index.root)["source"]["forms"][0] == "32 .json and .txt files beside the pictures"


def test_tars_of_img2dataset(source, prepared):
    (source / "00000.tar").write_bytes(pack(members()))
    parquet.write_table(pa.table({"url": ["x"], "caption": ["y"]}), source / "00000.parquet")
    assert texts(prepared())["000000003"] == [caption(3)]


def images(form: str) -> pa.Array:
    data = [encoded(flat(n), "JPEG", quality=95) for n in NUMBERS]
    if form == "bytes":
        return pa.array(data, pa.binary())
    return pa.array([{"bytes": each, "path": None} for each in data])


@pytest.mark.parametrize(("form", "columns"), [("bytes", ("jpg", "caption")), ("struct", ("image", "text"))])
def test_pictures_in_parquet(source, prepared, form, columns):
    table = pa.table(dict(zip(columns, (images(form), [caption(n) for n in NUMBERS]), strict=True)))
    parquet.write_table(table, source / "00000.parquet", row_group_size=5)
    index = prepared(num_workers=2, samples_per_shard=4)
    assert texts(index)["00000_0000013"] == [caption(13)]
    assert read_report(index.root)["converted"] == {"stored byte for byte": 16}


def test_parquet_files_named_by_splits_are_these_splits(source, prepared):
    for split, numbers in (("train", NUMBERS[:12]), ("validation", NUMBERS[12:])):
        table = pa.table(
            {"image": images("struct")[numbers.start : numbers.stop], "text": list(map(caption, numbers))}
        )
        parquet.write_table(table, source / f"{split}-00000-of-00001.parquet")
    index = prepared()
    assert {shard.split: shard.count for shard in index.shards} == {"train": 12, "val": 4}


def test_two_conventions_are_refused_and_an_option_chooses(source, prepared, tmp_path):
    write_pictures(source)
    put(source, ".txt", lambda n: "tags, of, danbooru")
    put(source, ".caption", caption)
    sentence = (
        r"captions in p00\.caption \(captions=\.caption\) and in p00\.txt \(captions=\.txt\): choose one"
    )
    with pytest.raises(DataError, match=sentence):
        prepared()
    assert not (tmp_path / "out").exists()
    assert texts(prepared(captions=".caption"))["p03"] == [caption(3)]


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        (
            ["file_name", "caption", "text"],
            {},
            "has the columns caption and text: choose one with caption=NAME",
        ),
        (
            ["a_file_name", "b_file_name", "text"],
            {},
            "a_file_name and b_file_name: choose one with image=NAME",
        ),
        (["file_name", "words"], {}, "has no column 'caption'; it has file_name, words: choose one"),
        (["file_name", "text"], {"number": "n"}, "has no column 'n'"),
    ],
)
def test_columns_that_may_be_several_or_none_are_refused(source, prepared, columns, options, sentence):
    write_pictures(source)
    (source / "metadata.csv").write_text(",".join(columns) + "\n" + ",".join("x" for _ in columns) + "\n")
    with pytest.raises(DataError, match=sentence):
        prepared(**options)


def test_what_is_no_convention_is_refused_in_a_sentence(source, prepared, monkeypatch):
    with pytest.raises(DataError, match=r"no JPEG, PNG or WebP there, nor a \.tar or \.parquet"):
        prepared()
    with pytest.raises(DataError, match=r"captions=\.txt: .* has no such files"):
        prepared(captions=".txt")
    with pytest.raises(DataError, match=r"captions=nowhere\.csv is no file, nor one of metadata, \.caption"):
        prepared(captions="nowhere.csv")
    parquet.write_table(pa.table({"url": ["x"], "caption": ["y"]}), source / "0.parquet")
    with pytest.raises(DataError, match="no column with the bytes of pictures; it has url, caption"):
        prepared()
    (source / "1.parquet").write_bytes(b"no parquet")
    (source / "0.parquet").unlink()
    with pytest.raises(DataError, match=r"1\.parquet is damaged, or no parquet file"):
        prepared()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (source / "1.parquet").rename(source / "2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet needs pyarrow to be read: pip install pyarrow"):
        prepared()
    (source / "2.parquet").unlink()
    write_pictures(source)
    with pytest.raises(DataError, match=r"16 pictures and no captions: write \.txt files beside them"):
        prepared()
