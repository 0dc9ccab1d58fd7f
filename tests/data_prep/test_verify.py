"""Facts about the proof that a set is whole."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from benchmarks.faults.sets import exchange_files, put, rewrite, swap
from benchmarks.faults.world import NUM_PICTURES, TOKENS, token_file, write_pictures
from data_prep import flickr30k, verify
from ldm.data import DataError
from ldm.data.index import ShardIndex


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a prepared set: 16 pictures, 12 of them to train on, three a shard."""
    root = tmp_path_factory.mktemp("made")
    write_pictures(root / "source" / "flickr30k-images")
    (root / "source" / TOKENS).write_text(token_file())
    options = {"samples_per_shard": 3, "num_workers": 0, "val_share": 0.25, "test_share": 0.0}
    flickr30k.main(flickr30k.Options(source=str(root / "source"), out=str(root / "out"), **options))
    return root / "out"


@pytest.fixture
def index(made, tmp_path):
    """Index of a copy of that set, to be damaged."""
    return ShardIndex.load(shutil.copytree(made, tmp_path / "out"))


def verified(root, **options) -> dict:
    verify.main(verify.Options(root=str(root), num_workers=0, **options))
    return json.loads((root / "verify" / "summary.json").read_text())


def flip(path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_whole_set_is_counted_and_drawn(index):
    summary = verified(index.root)
    assert summary["problems"] == []
    assert summary["sha256"] == index.sha256
    assert summary["pictures"] == {"train": 12, "val": 4}
    assert summary["captions"] == 2 * NUM_PICTURES
    for name in ("sheet.png", "histograms.png"):
        with Image.open(index.root / "verify" / name) as drawn:
            assert min(drawn.size) > 200


def test_figures_of_an_earlier_run_do_not_stay(index):
    verified(index.root)
    for shard in index.shards:
        (index.root / shard.file).write_bytes(bytes(shard.bytes))
    with pytest.raises(DataError, match="is not whole"):
        verified(index.root)
    names = sorted(path.name for path in (index.root / "verify").iterdir())
    assert names == ["sheet.png", "summary.json"]


def test_captions_that_name_a_side_are_counted(source, prepare):
    path = source / "results_20130124.token"
    path.write_text(path.read_text().replace("picture 3 seen 1", "picture 3 on the left"))
    assert verified(prepare().root)["captions_that_name_a_side"] == 1


def test_a_set_of_an_earlier_version_is_whole_without_checksums(index):
    replace(index, shards=tuple(replace(shard, checksums=[]) for shard in index.shards)).save()
    assert verified(index.root)["problems"] == []


def test_pictures_that_are_the_same_are_listed(source, prepare):
    pictures = source / "flickr30k-images"
    (pictures / "p05.jpg").write_bytes((pictures / "p09.jpg").read_bytes())
    assert verified(prepare().root)["same_bytes"] == [["p05", "p09"]]


@pytest.mark.parametrize("part", ["images", "records"])
def test_a_flipped_bit_is_named_by_its_shard(index, part):
    shard = index.shards[1]
    flip(index.root / shard.file, sum(getattr(shard, part)[0]) - 2)
    with pytest.raises(DataError, match=f"is not whole: shard {shard.file}: the index differs in sha256"):
        verified(index.root)


@pytest.mark.parametrize(
    "damage",
    [exchange_files, rewrite(swap("images")), rewrite(swap("records")), rewrite(put(0, "sha256", "0"))],
)
def test_pairs_that_are_not_where_the_index_says_are_named(index, damage):
    damage(index.root)
    with pytest.raises(DataError, match="is not whole: "):
        verified(index.root)


def test_splits_that_say_otherwise_are_named(index):
    path = index.root / "splits.json"
    splits = json.loads(path.read_text())
    splits["val"].append(splits["train"].pop())
    path.write_text(json.dumps(splits))
    with pytest.raises(DataError, match=r"1 pictures of train-\d+\.tar are elsewhere there"):
        verified(index.root)


def test_a_report_that_says_otherwise_is_named(index):
    path = index.root / "report.json"
    path.write_text(path.read_text().replace('"pictures": 16', '"pictures": 17'))
    with pytest.raises(DataError, match="the index has 16 pictures, the report 17"):
        verified(index.root)
