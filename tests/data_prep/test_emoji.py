"""Facts about the preparation of the emoji pictures, run as the command runs it."""

import json

import pytest

from data_prep import emoji
from ldm.data import DataError
from ldm.data.index import ShardIndex


@pytest.fixture
def few(tmp_path, monkeypatch):
    """The command's assets with 12 of the captions, and a folder for its shards."""
    assets = tmp_path / "assets"
    assets.mkdir()
    captions = json.loads((emoji.ASSETS / "captions.json").read_text(encoding="utf-8"))
    (assets / "captions.json").write_text(json.dumps(dict(list(captions.items())[:12])))
    (assets / "sheet.webp").symlink_to(emoji.ASSETS / "sheet.webp")
    monkeypatch.setattr(emoji, "ASSETS", assets)
    return str(tmp_path / "out")


def test_a_complete_set_is_left_alone_and_a_broken_one_made_anew(few, tmp_path, capsys):
    emoji.main(emoji.Options(out=few, val_share=0.25))
    index = ShardIndex.load(few)
    assert [(shard.split, shard.count) for shard in index.shards] == [("train", 9), ("val", 3)]
    emoji.main(emoji.Options(out=few, val_share=0.25))
    assert "is complete already: 12 pictures" in capsys.readouterr().out
    for other in ({"val_share": 0.5}, {"val_share": 0.25, "seed": 1}):
        with pytest.raises(DataError, match="a complete set of other pictures, or of another val_share"):
            emoji.main(emoji.Options(out=few, **other))
    assert ShardIndex.load(few).sha256 == index.sha256
    shard = tmp_path / "out" / index.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-1])
    emoji.main(emoji.Options(out=few, val_share=0.25))
    assert ShardIndex.load(few).sha256 == index.sha256


def test_the_shipped_captions_are_whole():
    captions = json.loads((emoji.ASSETS / "captions.json").read_text(encoding="utf-8"))
    assert len(captions) == 1636
    assert len({entry["index"] for entry in captions.values()}) == 1636
    assert all(4 <= len(entry["captions"]) <= 6 for entry in captions.values())


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_out_of_range_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match=r"val_share=.* must lie between 0 and 1"):
        emoji.main(emoji.Options(out=str(tmp_path / "out"), val_share=share))
    assert not (tmp_path / "out").exists()
