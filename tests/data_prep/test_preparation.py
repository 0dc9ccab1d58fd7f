"""Facts about preparations: the same bytes always, nothing twice, every skip named, and a limit to them."""

import hashlib
import json
import os
import shutil

import pytest

from benchmarks.faults.world import NUM_PICTURES, encoded, flat, name_of
from data_prep.reports import read_report
from ldm.data import DataError
from ldm.data.index import ShardIndex

PICTURES = "flickr30k-images"


def set_files(root) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("*") if path.name != "report.json"}


def test_the_shards_do_not_depend_on_the_number_of_processes(prepare):
    alone, together = prepare("alone"), prepare("together", num_workers=3)
    assert set_files(alone.root) == set_files(together.root)


def test_a_complete_set_is_left_alone(prepare, capsys):
    index = prepare()
    before = {path: path.stat().st_mtime_ns for path in index.root.iterdir() if path.suffix == ".tar"}
    prepare(num_workers=2)
    assert f"is complete already: {NUM_PICTURES} pictures" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_complete_set_of_other_options_is_never_overwritten(prepare):
    index = prepare()
    with pytest.raises(DataError, match="holds a complete set of another source, other options"):
        prepare(resolution=8)
    assert ShardIndex.load(index.root).sha256 == index.sha256


def test_a_set_that_is_not_whole_is_made_anew(prepare, capsys):
    index = prepare()
    path = index.root / index.shards[0].file
    path.write_bytes(path.read_bytes()[:-1])
    assert prepare().sha256 == index.sha256
    assert "made anew: shard" in capsys.readouterr().out


def test_unfinished_shards_of_another_plan_are_made_anew_and_that_is_said(source, prepare, capsys):
    (source / PICTURES / name_of(3)).write_bytes(b"")
    for resolution in (16, 24):
        with pytest.raises(DataError, match="are left out"):
            prepare(resolution=resolution)
    assert "made anew, as source, options or bytes have changed: 6 shards" in capsys.readouterr().out


def replace_pictures(source, numbers):
    """Other pictures of the same size in bytes and with the same time stamps."""
    for number in numbers:
        path = source / PICTURES / name_of(number)
        before = path.stat()
        data = encoded(flat(number + 100), "JPEG")
        assert len(data) <= before.st_size
        path.write_bytes(data.ljust(before.st_size, b"\0"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def pad_pictures(source):
    """Room behind each picture for any other."""
    for number in range(NUM_PICTURES):
        path = source / PICTURES / name_of(number)
        path.write_bytes(path.read_bytes().ljust(4096, b"\0"))


def test_a_preparation_that_resumes_takes_pictures_that_were_replaced_anew(source, prepare, capsys):
    pad_pictures(source)
    unreadable = source / PICTURES / name_of(15)
    whole = unreadable.read_bytes()
    unreadable.write_bytes(b"<html>".ljust(4096))  # stops the preparation at its end, after all shards
    with pytest.raises(DataError, match="are left out"):
        prepare()
    replace_pictures(source, range(4))
    unreadable.write_bytes(whole)
    capsys.readouterr()
    resumed = prepare()
    assert "made anew, as source, options or bytes have changed" in capsys.readouterr().out
    assert resumed.sha256 == prepare("fresh").sha256


def test_shards_of_unchanged_pictures_are_kept_when_the_source_has_moved(source, prepare, tmp_path):
    pad_pictures(source)
    broken = source / PICTURES / name_of(15)
    whole = broken.read_bytes()
    broken.write_bytes(b"<html>".ljust(4096))
    with pytest.raises(DataError, match="are left out"):
        prepare()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    broken.write_bytes(whole)
    moved = shutil.copytree(source, tmp_path / "elsewhere")
    prepare(source=str(moved))
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in made.items()) == len(made) - 1


def test_a_complete_set_of_pictures_that_were_replaced_is_not_called_complete(source, prepare):
    pad_pictures(source)
    index = prepare()
    replace_pictures(source, [7])
    with pytest.raises(DataError, match="holds a complete set of another source"):
        prepare()
    assert ShardIndex.load(index.root).sha256 == index.sha256


def test_too_many_skips_stop_the_run_without_an_index_and_are_named(source, prepare, tmp_path):
    for number in (3, 7):
        (source / PICTURES / name_of(number)).write_bytes(b"<html>")
    with pytest.raises(
        DataError, match=r"2 of 16 pictures are left out, most as 'not JPEG.*max_skip_share=0\.12"
    ):
        prepare()
    assert not (tmp_path / "out" / "shards.json").exists()
    report = read_report(tmp_path / "out")
    assert report["complete"] is False
    assert report["pictures_left_out"] == {"not JPEG, PNG or WebP": [name_of(3), name_of(7)]}
    shard = tmp_path / "out" / "train-000000.tar"
    made = shard.stat().st_mtime_ns
    index = prepare(max_skip_share=0.2)
    assert sum(shard.count for shard in index.shards) == NUM_PICTURES - 2
    assert shard.stat().st_mtime_ns == made  # nothing is done twice


def test_the_report_says_what_was_found_and_made(source, prepare):
    shutil.copy(source / PICTURES / name_of(1), source / PICTURES / name_of(2))
    (source / PICTURES / name_of(4)).write_bytes(encoded(flat(4, "L", size=(60, 40)), "PNG"))
    index = prepare(resolution=20)
    report = read_report(index.root)
    assert report["complete"] is True
    assert (report["source"]["pictures"], report["source"]["captions"]) == (16, 32)
    assert report["written"]["bytes"] == sum(shard.bytes for shard in index.shards)
    assert report["same_bytes"] == [["p01", "p02"]]
    assert report["converted"] == {"L to RGB": 1, "named by another format": 1, "resized": 16}
    assert report["options"]["resolution"] == 20
    assert report["speed"]["pictures"] == 16
    assert 10 < report["speed"]["peak_memory_mb"] < 20_000
    assert report["split_sha256"] == hashlib.sha256((index.root / "splits.json").read_bytes()).hexdigest()


def test_captions_that_clip_would_cut_are_counted(source, prepare):
    path = source / "results_20130124.token"
    path.write_text(path.read_text().replace("picture 3 seen 0", "picture 3 " + "dog " * 80))
    assert read_report(prepare().root)["captions_over_77_tokens"] == 1


def test_the_split_is_by_picture_and_by_seed(prepare):
    drawn = [prepare(f"{n}", seed=seed, val_share=0.25) for n, seed in enumerate((0, 0, 1))]
    held_out = [[key for shard in index.split("val") for key in shard.keys] for index in drawn]
    assert held_out[0] == held_out[1] != held_out[2]
    assert len(held_out[0]) == 4
    written = json.loads((drawn[0].root / "splits.json").read_text())
    assert written["val"] == held_out[0]
    assert len({key for keys in written.values() for key in keys}) == NUM_PICTURES


@pytest.mark.parametrize("name", [".lock", ".notes", "report.json", "splits.json", "train-000000.tar"])
@pytest.mark.parametrize("target", ["notes.txt", "."])
def test_a_link_in_the_set_that_is_made_is_refused(prepare, tmp_path, name, target):
    victim, root = tmp_path / "victim", tmp_path / "linked"
    (victim / ".tmp-x").mkdir(parents=True)
    (victim / "notes.txt").write_text("precious")
    root.mkdir()
    (root / name).symlink_to(victim / target)
    before = {path: path.stat().st_mtime_ns for path in (victim, *victim.rglob("*"))}
    with pytest.raises(ValueError, match=f"^{root / name} is a link to {victim}.*, and nothing is written"):
        prepare("linked")
    assert {path: path.stat().st_mtime_ns for path in (victim, *victim.rglob("*"))} == before
    assert (victim / "notes.txt").read_text() == "precious"
