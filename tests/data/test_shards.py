"""Facts about shards, their index and what is refused."""

import gzip
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from data_prep import emoji as preparation
from data_prep.making import write_shards
from ldm.data import DataError
from ldm.data.index import ShardIndex
from ldm.data.shards import PictureDataset, Sample, ShardReader, captions, is_record, scan_shard


@pytest.fixture
def broken(copy_emoji):
    """Index of a set that may be damaged."""
    return ShardIndex.load(copy_emoji())


def flip(path, offset: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


def test_webdataset_reads_the_samples_that_we_read(emoji):
    index = ShardIndex.load(emoji)
    for split in ("train", "val"):
        ours = ShardReader(index, split=split)
        urls = [str(emoji / shard.file) for shard in index.split(split)]
        theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
        assert [sample["__key__"] for sample in theirs] == ours.keys()
        for number, sample in enumerate(theirs):
            assert sample["png"] == ours.image(number)
            assert json.loads(sample["json"]) == ours.record(number)


def test_the_same_samples_give_the_same_bytes(write_emoji, tmp_path):
    first, second = (write_emoji(tmp_path / name, samples_per_shard=8) for name in ("a", "b"))
    assert first.sha256 == second.sha256
    assert (tmp_path / "a/shards.json").read_bytes() == (tmp_path / "b/shards.json").read_bytes()


def test_a_record_holds_what_flickr30k_has_too(emoji):
    record = ShardReader(ShardIndex.load(emoji), split="train").record(0)
    assert set(record) == {"key", "texts", "comment_nos", "group", "subgroup"}
    assert record["comment_nos"] == list(range(len(record["texts"])))


def test_splits_are_disjoint_and_complete(emoji):
    index = ShardIndex.load(emoji)
    train, val = (set(ShardReader(index, split=name).keys()) for name in ("train", "val"))
    assert (len(train), len(val), len(train & val)) == (20, 4, 0)


def test_the_held_out_pictures_are_drawn_by_seed():
    keys = [f"k{n}" for n in range(100)]
    drawn = [preparation.draw_validation(keys, share=0.1, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {len(held_out) for held_out in drawn} == {10}


def test_pictures_are_the_tiles_of_the_sheet(emoji):
    pictures = PictureDataset(str(emoji), split="train", size=64)
    entry = json.loads((preparation.ASSETS / "captions.json").read_text())[pictures.reader.keys()[3]]
    row, column = divmod(entry["index"], 32)
    with Image.open(preparation.ASSETS / "sheet.webp") as sheet:
        pixels = torch.from_numpy(np.array(sheet.convert("RGB"))).permute(2, 0, 1)
    tile = pixels[:, row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
    assert torch.equal(pictures.image(3), tile)
    assert pictures.captions(3) == entry["captions"]


def test_larger_pictures_are_cropped_to_the_middle(tmp_path):
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))
    wide.save(tmp_path / "wide.png")
    sample = Sample(
        key="wide",
        image=(tmp_path / "wide.png").read_bytes(),
        extension="png",
        texts=["a wide one"],
        comment_nos=[0],
    )
    shards = tuple(write_shards([sample], root=tmp_path, split="train"))
    ShardIndex(root=tmp_path, name="wide", shards=shards).save()
    image = PictureDataset(str(tmp_path), split="train", size=16).image(0)
    assert image.shape == (3, 16, 16)
    middle = image[:, :, 1:-1]  # the outermost columns take a little from beyond, as bicubic filters do
    assert middle[2].min() == 255
    assert middle[0].max() == 0


def test_all_captions_of_a_split_come_in_order(emoji):
    own = PictureDataset(str(emoji), split="val", size=16).texts()
    assert captions(str(emoji), split="val") == [text for texts in own for text in texts]


def test_a_missing_set_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"no data set at .*shards\.json is missing; prepare one with"):
        ShardIndex.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format":1}', '{"format":1,"name":"x","shards":[{"file":"a"}]}', "\x00\xff"],
)
def test_an_index_that_is_no_index_is_refused(tmp_path, text):
    (tmp_path / "shards.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"shards\.json is not a readable shard index"):
        ShardIndex.load(tmp_path)


def test_an_index_of_another_format_is_refused(broken):
    path = broken.root / "shards.json"
    path.write_text(path.read_text().replace('"format":1', '"format":3'))
    with pytest.raises(DataError, match="format 3, this version reads 1 and 2"):
        ShardIndex.load(broken.root)


def test_an_index_whose_lists_differ_in_length_is_refused(broken):
    path = broken.root / "shards.json"
    document = json.loads(path.read_text())
    document["shards"][0]["images"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="differ in number"):
        ShardIndex.load(broken.root)


def test_a_cut_shard_is_refused(broken):
    path = broken.root / broken.shards[0].file
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-000000\.tar has \d+ bytes, its index says"):
        ShardIndex.load(broken.root)


def test_a_missing_shard_is_refused(broken):
    (broken.root / broken.shards[1].file).unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar is missing"):
        ShardIndex.load(broken.root)


def test_a_flipped_bit_anywhere_is_found_by_verify(broken):
    flip(broken.root / broken.shards[0].file, 700)
    index = ShardIndex.load(broken.root)
    with pytest.raises(DataError, match="differs from what was prepared"):
        index.verify()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("half", ["image", "record"])
def test_a_flipped_bit_in_a_sample_is_found_when_it_is_read(broken, half, share):
    shard = broken.shards[0]
    offset, size = getattr(shard, f"{half}s")[2]
    flip(broken.root / shard.file, offset + int(share * size))
    reader = ShardReader(ShardIndex.load(broken.root), split="train")
    assert reader.record(1)["key"] == shard.keys[1]
    with pytest.raises(DataError, match=f"sample '{shard.keys[2]}' differs from what was prepared"):
        getattr(reader, half)(2)


def test_a_reader_of_many_shards_holds_few_open(write_emoji, tmp_path, monkeypatch):
    reader = ShardReader(write_emoji(tmp_path, samples_per_shard=4), split="train")
    usual = [reader.image(number) for number in range(len(reader))]
    monkeypatch.setattr("ldm.data.shards.MAX_OPEN", 2)
    limit = len(os.listdir("/dev/fd")) + 2
    again = ShardReader(ShardIndex.load(tmp_path), split="train")
    for number in (*range(len(again)), *range(0, len(again), 3)):
        assert again.image(number) == usual[number]
        assert len(os.listdir("/dev/fd")) <= limit


def without_checksums(index: ShardIndex) -> ShardIndex:
    """The set as an earlier version has it."""
    shards = tuple(replace(shard, checksums=[]) for shard in index.shards)
    replace(index, shards=shards).save()
    return ShardIndex.load(index.root)


def test_sets_without_checksums_are_read_as_before(broken):
    old = without_checksums(broken)
    assert old.sha256 == broken.sha256
    ours, theirs = (ShardReader(index, split="train") for index in (broken, old))
    assert [ours.image(n) for n in range(len(ours))] == [theirs.image(n) for n in range(len(theirs))]


def test_sets_without_checksums_are_read_whole_at_start_or_said_to_be_unchecked(broken, monkeypatch, caplog):
    old, shard = without_checksums(broken), broken.shards[0]
    flip(broken.root / shard.file, shard.images[2][0] + shard.images[2][1] - 1)
    with pytest.raises(DataError, match=rf"{shard.file} differs from what was prepared \(sha256\)"):
        ShardReader(old, split="train")
    monkeypatch.setattr("ldm.data.index.CHECKED_AT_START", 1)
    assert not caplog.records
    ShardReader(old, split="train")
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"{old.root} was made by an earlier version"
    ]


def test_a_damaged_record_names_its_sample(broken):
    shard = broken.shards[0]
    reader = ShardReader(without_checksums(broken), split="train")
    flip(broken.root / shard.file, shard.records[2][0])
    assert reader.record(1)["key"] == shard.keys[1]
    with pytest.raises(DataError, match=f"sample '{shard.keys[2]}' has a damaged record"):
        reader.record(2)


def test_a_damaged_picture_names_its_sample(broken):
    shard = broken.shards[0]
    without_checksums(broken)
    pictures = PictureDataset(str(broken.root), split="train", size=16)
    flip(broken.root / shard.file, shard.images[2][0] + 1)
    with pytest.raises(DataError, match=f"sample '{shard.keys[2]}' can't be decoded .*: prepare"):
        pictures.image(2)


def test_an_unknown_split_is_named_with_the_known(emoji):
    with pytest.raises(DataError, match="no split 'test'; it has train, val"):
        PictureDataset(str(emoji), split="test", size=16)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (["a.png"], "sample 'a' lacks its picture or its json"),
        (["a.png", "a.json", "a.jpg"], "'a.jpg' is no picture or json of its own sample"),
    ],
)
def test_half_samples_are_refused(tmp_path, members, sentence):
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for name in members:
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match=sentence):
        scan_shard(tmp_path / "odd.tar", split="train")


def test_a_link_in_a_shard_is_refused(tmp_path):
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        tar.addfile(link)
    with pytest.raises(DataError, match=r"'a\.png' is no picture"):
        scan_shard(tmp_path / "link.tar", split="train")


def change_index(root, change) -> None:
    path = root / "shards.json"
    document = json.loads(path.read_text())
    change(document["shards"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda shards: shards[0].update(file="../train-000000.tar"), "is not a plain file name"),
        (lambda shards: shards[0]["images"].__setitem__(0, [512, 10**9]), "lies outside its shard"),
        (lambda shards: shards[0]["keys"].__setitem__(0, 7), "names and keys must be texts"),
        (lambda shards: shards[0]["keys"].__setitem__(0, shards[-1]["keys"][0]), "has 2 samples"),
    ],
)
def test_an_index_that_leads_astray_is_refused(broken, change, sentence):
    change_index(broken.root, change)
    with pytest.raises(DataError, match=sentence):
        ShardIndex.load(broken.root)


@pytest.mark.parametrize("part", ["images", "records"])
def test_samples_whose_places_are_exchanged_are_refused(broken, part):
    change_index(broken.root, lambda shards: shards[0][part].reverse())
    reader = ShardReader(ShardIndex.load(broken.root), split="train")
    read = reader.image if part == "images" else reader.record
    with pytest.raises(DataError, match=r"is not where the index says|is damaged"):
        read(0)


def test_a_shard_that_is_cut_while_it_is_read_is_refused(broken):
    reader = ShardReader(ShardIndex.load(broken.root), split="train")
    path = broken.root / broken.shards[0].file
    path.write_bytes(path.read_bytes()[: broken.shards[0].images[1][0] + 5])
    assert reader.image(0)
    with pytest.raises(DataError, match="is not where the index says"):
        reader.image(1)
    path.unlink()
    with pytest.raises(DataError, match=r"can't be read \(No such file"):
        ShardReader(broken, split="train").image(0)


def test_long_and_foreign_keys_are_read_back(tmp_path):
    keys = ["k" * 150, "ключ", "a b"]
    samples = [
        Sample(key=key, image=key.encode(), extension="png", texts=[key], comment_nos=[0]) for key in keys
    ]
    shards = tuple(write_shards(samples, root=tmp_path, split="train"))
    ShardIndex(root=tmp_path, name="keys", shards=shards).save()
    reader = ShardReader(ShardIndex.load(tmp_path), split="train")
    assert [reader.image(number).decode() for number in range(3)] == keys
    assert [reader.record(number)["key"] for number in range(3)] == keys


def test_a_tar_cut_between_two_members_is_no_shard(emoji, tmp_path):
    index = ShardIndex.load(emoji)
    whole = (emoji / index.shards[0].file).read_bytes()
    cut = index.shards[0].images[2][0] - 512  # where a member begins: tarfile takes that for the end
    (tmp_path / "cut.tar").write_bytes(whole[:cut])
    with pytest.raises(DataError, match=f"is cut or damaged at byte {cut}"):
        scan_shard(tmp_path / "cut.tar", split="train")


def test_a_compressed_tar_is_no_shard(emoji, tmp_path):
    (tmp_path / "packed.tar").write_bytes(gzip.compress((emoji / "train-000000.tar").read_bytes()))
    with pytest.raises(DataError, match="no whole, uncompressed tar"):
        scan_shard(tmp_path / "packed.tar", split="train")


def test_what_is_not_written_whole_leaves_nothing(tmp_path):
    def samples():
        yield Sample(key="a", image=b"1", extension="png", texts=["a"], comment_nos=[0])
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        tuple(write_shards(iter(samples()), root=tmp_path, split="train"))
    assert list(tmp_path.iterdir()) == []


def test_a_record_without_captions_or_of_another_key_is_no_record():
    whole = {"key": "a", "texts": ["x"], "comment_nos": [0]}
    assert is_record(whole, key="a")
    broken = [
        {"key": "b"},
        {"texts": []},
        {"texts": "x"},
        {"texts": [7]},
        {"texts": [" "]},
        {"comment_nos": []},
    ]
    assert not any(is_record(whole | change, key="a") for change in broken)
    assert not is_record(["a"], key="a")
