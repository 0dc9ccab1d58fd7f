"""Facts about drawing into a folder again: what goes, what stays, and what the folder's list says."""

import json
import os
import shutil
from functools import partial

import pytest
from PIL import Image

from ldm import UserError
from ldm.evaluation.pictures import PictureFolder
from ldm.sampling.jobs import asked_lines, jobs_of
from ldm.sampling.output import DOOMED, SHEET, check_output, clear


@pytest.fixture(scope="module")
def four(command, bundle_path, tmp_path_factory):
    """The folder of a command that generated four pictures. Read it, never write to it."""
    out = tmp_path_factory.mktemp("four") / "out"
    chosen = (f"bundle={bundle_path}", f"out={out}", "steps=1", "num_pictures=4", "prompts=[a hat]")
    command("ldm.sample", *chosen)
    return out


@pytest.fixture
def out(four, tmp_path):
    """A copy of such a folder."""
    return shutil.copytree(four, tmp_path / "out")


@pytest.fixture
def sample(command, bundle_path, out):
    """`sample(*arguments)`: one more command into the folder, for one picture in one step."""
    chosen = (f"bundle={bundle_path}", f"out={out}", "steps=1", "num_pictures=1")
    return partial(command, "ldm.sample", *chosen)


def refused(folder, *, sheet=None, **fields):
    """The sentence that refuses to write one picture into a folder."""
    jobs = jobs_of(asked_lines("a cat"), defaults={"count": 1, "seed": 0} | fields)
    with pytest.raises(UserError) as error:
        check_output(folder, jobs, sheet or folder / SHEET)
    return str(error.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def listed(folder):
    return [json.loads(line)["file"] for line in (folder / "pictures.jsonl").read_text().splitlines()]


def test_fewer_pictures_leave_nothing_of_the_earlier_ones_and_all_of_the_users(sample, out, tmp_path):
    for name in ("mine.png", "0003.txt"):
        (out / name).write_bytes(b"mine")
    Image.new("RGB", (16, 16)).save(out / "0003.png")  # edited by the user
    shutil.move(out / "0002.png", tmp_path / "moved.png")
    (out / "0002.png").symlink_to(tmp_path / "moved.png")
    sample("prompts=[a cat]")
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


def test_only_what_the_list_names_is_measured_and_the_rest_is_said(out, capsys):
    Image.new("RGB", (40, 40)).save(out / "mine.png")
    shutil.copy(out / "0000.png", out / "0004.png")
    assert PictureFolder(out).keys() == ["0000", "0001", "0002", "0003"]
    said = capsys.readouterr().out
    assert f"{out}: 3 of the files are passed over, 0004.png first: pictures.jsonl" in said


def test_a_sheet_is_no_picture_wherever_it_lies(sample, out, tmp_path):
    sample("prompts=[a hat]", f"sheet={tmp_path / 'overview.png'}")
    (out / "pictures.jsonl").unlink()
    shutil.copy(tmp_path / "overview.png", out / "0009.png")
    assert PictureFolder(out).keys() == ["0000"]


def test_a_list_that_names_what_is_gone_is_refused(out):
    (out / "0002.png").unlink()
    with pytest.raises(ValueError, match=r"pictures\.jsonl names 0002\.png, which is not there"):
        PictureFolder(out)


def test_a_command_that_stops_halfway_leaves_a_list_that_is_true(sample, out, tmp_path):
    Image.effect_noise((16, 16), 90).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:-60])  # its header is whole
    (tmp_path / "list.csv").write_text("prompt,image\na hat,a.png\na cat,cut.png\n")
    ended = sample(f"prompts={tmp_path / 'list.csv'}", "batch_size=1", "per_prompt=1", status=1)
    assert "cut.png can't be decoded" in ended.sentence
    assert listed(out) == ["0000.png"]
    assert names(out) == ["0000.png", "pictures.jsonl"]


def test_what_was_being_removed_goes_with_the_next_command(sample, out):
    (out / DOOMED).write_text(json.dumps(listed(out)))
    (out / "pictures.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no picture"):
        PictureFolder(out)
    sample("prompts=[a hat]")
    assert names(out) == ["0000.png", "pictures.jsonl", "sheet.png"]


@pytest.mark.parametrize("name", ["pictures.jsonl", DOOMED, "sheet.png"])
def test_a_link_in_the_place_of_what_is_written_is_refused_before_a_picture_is_made(out, tmp_path, name):
    if (out / name).exists():
        shutil.move(out / name, tmp_path / "moved")
    (out / name).symlink_to(tmp_path / "moved")
    before = names(out)
    assert f"{name} is a link to" in refused(out)
    assert names(out) == before


def test_names_that_are_put_aside_and_are_none_are_passed_over(out):
    (out / DOOMED).write_text('[1, "../a", ["0000.png"], "b\\u0000"]')
    clear(out)
    assert names(out) == ["pictures.jsonl"]


def test_a_pipe_in_the_place_of_the_list_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pictures.jsonl")
    assert "pictures.jsonl that ldm.sample has not written" in refused(tmp_path)


@pytest.mark.parametrize("name", ["0001.png", "pictures.jsonl", "sheet.png"])
def test_a_users_file_is_never_overwritten(tmp_path, name):
    Image.new("RGB", (16, 16)).save(tmp_path / name, format="PNG")
    before = (tmp_path / name).read_bytes()
    assert "that ldm.sample has not written" in refused(tmp_path, count=2).replace("which", "that")
    assert (tmp_path / name).read_bytes() == before
    assert names(tmp_path) == [name]


def test_the_folder_of_a_sheet_must_be_there(tmp_path):
    assert f"make {tmp_path / 'none'} first" in refused(tmp_path, sheet=tmp_path / "none" / "a.png")


def test_a_picture_that_is_reproduced_takes_no_users_place(command, bundle_path, out):
    (out / "0000_again.png").write_bytes(b"mine")
    ended = command(
        "ldm.sample", f"again={out / '0000.png'}", f"bundle={bundle_path}", f"out={out}", status=1
    )
    assert "holds 0000_again.png, which ldm.sample has not written" in ended.sentence
    assert (out / "0000_again.png").read_bytes() == b"mine"


def test_a_source_picture_is_never_removed(out):
    before = names(out)
    for image in ("0002.png", "../out/0002.png"):
        assert "would be removed" in refused(out, image=str(out / image))
    assert names(out) == before
