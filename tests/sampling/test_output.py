"""Facts about drawing into a folder again: what goes, what stays, and what the folder's list says."""

import json
import os
import shutil
import sys

import pytest
from PIL import Image

from ldm.evaluation.pictures import PictureFolder
from ldm.sample import main
from ldm.sampling.output import DOOMED


@pytest.fixture
def sample(monkeypatch, bundle_path, tmp_path):
    """`sample(*arguments)`: the command with the tiny bundle and one step; returns its folder."""

    def call(*arguments):
        out = tmp_path / "out"
        chosen = [f"bundle={bundle_path}", f"out={out}", "steps=1", "num_pictures=4", *arguments]
        monkeypatch.setattr(sys, "argv", ["ldm.sample", *chosen])
        main()
        return out

    return call


@pytest.fixture
def refused(sample, capsys):
    """`refused(*arguments)`: the sentence with which the command ends."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            sample(*arguments)
        assert ended.value.code == 1
        return capsys.readouterr().err

    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def listed(folder):
    return [json.loads(line)["file"] for line in (folder / "pictures.jsonl").read_text().splitlines()]


def test_fewer_pictures_leave_nothing_of_the_earlier_ones_and_all_of_the_users(sample, tmp_path):
    out = sample("prompts=[a hat]")
    for name in ("mine.png", "0003.txt"):
        (out / name).write_bytes(b"mine")
    Image.new("RGB", (16, 16)).save(out / "0003.png")  # edited by the user
    shutil.move(out / "0002.png", tmp_path / "moved.png")
    (out / "0002.png").symlink_to(tmp_path / "moved.png")
    sample("prompts=[a cat]", "num_pictures=1")
    assert listed(out) == ["0000.png"]
    assert names(out) == [
        "0000.png",
        "0002.png",
        "0003.png",
        "0003.txt",
        "mine.png",
        "pictures.jsonl",
        "sheet.png",
    ]
    assert (tmp_path / "moved.png").is_file()


def test_only_what_the_list_names_is_measured_and_the_rest_is_said(sample, capsys):
    out = sample("prompts=[a hat]")
    Image.new("RGB", (40, 40)).save(out / "mine.png")
    shutil.copy(out / "0000.png", out / "0004.png")
    capsys.readouterr()
    assert PictureFolder(out).keys() == ["0000", "0001", "0002", "0003"]
    said = capsys.readouterr().out
    assert f"{out}: 3 of the files are passed over, 0004.png first: pictures.jsonl" in said


def test_a_sheet_is_no_picture_wherever_it_lies(sample, tmp_path):
    out = sample("prompts=[a hat]", f"sheet={tmp_path / 'overview.png'}")
    (out / "pictures.jsonl").unlink()
    shutil.copy(tmp_path / "overview.png", out / "0009.png")
    assert PictureFolder(out).keys() == ["0000", "0001", "0002", "0003"]


def test_a_list_that_names_what_is_gone_is_refused(sample):
    out = sample("prompts=[a hat]")
    (out / "0002.png").unlink()
    with pytest.raises(ValueError, match=r"pictures\.jsonl names 0002\.png, which is not there"):
        PictureFolder(out)


def test_a_command_that_stops_halfway_leaves_a_list_that_is_true(sample, refused, tmp_path):
    out = sample("prompts=[a hat]")
    Image.effect_noise((16, 16), 90).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:-60])  # its header is whole
    (tmp_path / "list.csv").write_text("prompt,image\na hat,a.png\na cat,cut.png\n")
    assert "cut.png can't be decoded" in refused(
        f"prompts={tmp_path / 'list.csv'}", "batch_size=1", "per_prompt=1"
    )
    assert listed(out) == ["0000.png"]
    assert names(out) == ["0000.png", "pictures.jsonl"]


def test_what_was_being_removed_goes_with_the_next_command(sample):
    out = sample("prompts=[a hat]")
    (out / DOOMED).write_text(json.dumps(listed(out)))
    (out / "pictures.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no picture"):
        PictureFolder(out)
    sample("prompts=[a hat]", "num_pictures=1")
    assert names(out) == ["0000.png", "pictures.jsonl", "sheet.png"]


@pytest.mark.parametrize("name", ["pictures.jsonl", DOOMED, "sheet.png"])
def test_a_link_in_the_place_of_what_is_written_is_refused_before_a_picture_is_made(
    sample, refused, tmp_path, name
):
    out = sample("prompts=[a hat]")
    if (out / name).exists():
        shutil.move(out / name, tmp_path / "moved")
    (out / name).symlink_to(tmp_path / "moved")
    before = names(out)
    assert f"{name} is a link to" in refused("prompts=[a cat]", "num_pictures=1")
    assert names(out) == before


def test_names_that_are_put_aside_and_are_none_are_passed_over(sample):
    out = sample("prompts=[a hat]")
    (out / DOOMED).write_text('[1, "../a", ["0000.png"], "b\\u0000"]')
    sample("prompts=[a hat]", "num_pictures=1")
    assert names(out) == ["0000.png", "pictures.jsonl", "sheet.png"]


def test_a_pipe_in_the_place_of_the_list_is_refused(refused, tmp_path):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "pictures.jsonl")
    assert "pictures.jsonl that ldm.sample has not written" in refused("prompts=[a hat]")


@pytest.mark.parametrize("name", ["0001.png", "pictures.jsonl", "sheet.png"])
def test_a_users_file_is_never_overwritten(refused, tmp_path, name):
    (tmp_path / "out").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "out" / name, format="PNG")
    before = (tmp_path / "out" / name).read_bytes()
    assert "that ldm.sample has not written" in refused("prompts=[a hat]").replace("which", "that")
    assert (tmp_path / "out" / name).read_bytes() == before
    assert names(tmp_path / "out") == [name]


def test_a_picture_that_is_drawn_again_takes_no_users_place(sample, monkeypatch, capsys):
    out = sample("prompts=[a hat]")
    (out / "0000_again.png").write_bytes(b"mine")
    monkeypatch.setattr(sys, "argv", ["ldm.sample", f"again={out / '0000.png'}", f"out={out}"])
    with pytest.raises(SystemExit):
        main()
    assert "holds 0000_again.png, which ldm.sample has not written" in capsys.readouterr().err
    assert (out / "0000_again.png").read_bytes() == b"mine"


def test_a_picture_to_start_from_is_never_removed(sample, refused):
    out = sample("prompts=[a hat]")
    before = (out / "0002.png").read_bytes()
    for image in ("0002.png", "../out/0002.png"):
        sentence = refused("prompts=[a hat]", f"image={out / image}", "num_pictures=1")
        assert "would be removed" in sentence
    assert (out / "0002.png").read_bytes() == before
    assert listed(out) == names(out)[:4]
