"""Facts about which files of a folder are pictures."""

import json
import os

import pytest
import torch
from PIL import Image

from data_prep.verify import Specimen, draw_histograms, draw_sheet
from ldm.data.picture_files import find_pictures, is_hidden
from ldm.evaluation.figures import Place, save_curves, save_curves_of, save_png
from ldm.io.pictures import save_picture, save_sheet
from ldm.sampling.jobs import pictures_at
from tests.data.test_decode import encoded, scene


@pytest.fixture
def folder(tmp_path):
    """a.png, b/c.JPG, b/d.webp, and what is none of the pictures."""
    for name in ("a.png", "b/c.JPG", "b/d.webp", "b/._c.JPG", "__MACOSX/a.png", ".cache/a.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(scene(), "PNG"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("a.jpg", False),
        ("./a.jpg", False),
        ("../a.jpg", False),
        ("a.b/c.jpg", False),
        ("._a.jpg", True),
        ("set/._a.jpg", True),
        (".hidden/a.jpg", True),
        ("set/__MACOSX/a.jpg", True),
        ("Thumbs.db", True),
    ],
)
def test_what_a_system_leaves_behind_is_hidden(name, hidden):
    assert is_hidden(name) == hidden


def test_pictures_come_in_the_order_of_their_paths_whatever_the_disks_order(folder):
    assert find_pictures(folder) == (["a.png", "b/c.JPG", "b/d.webp"], {})
    (folder / "b-c.png").write_bytes(b"x")
    assert find_pictures(folder).pictures == ["a.png", "b/c.JPG", "b/d.webp", "b-c.png"]
    assert [path.name for path in pictures_at(folder)] == ["a.png", "b-c.png"]


def test_files_of_kinds_that_are_not_read_are_said(folder):
    for name in ("x.gif", "y.HEIC"):
        (folder / name).write_bytes(b"x")
    found = find_pictures(folder)
    assert found.pictures == ["a.png", "b/c.JPG", "b/d.webp"]
    (sentence,) = found.sentences(folder)
    assert "2 of the files are passed over, x.gif first: only .jpg, .jpeg, .png, .webp are read" in sentence


def test_no_figure_of_our_commands_is_a_picture(tmp_path):
    image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    noise = Image.effect_noise((200, 200), 90)
    save_sheet([image] * 4, tmp_path / "sheet.png", columns=2)
    save_png(noise, tmp_path / "train.png")
    save_png(noise.convert("RGB"), tmp_path / "quantized.png", max_bytes=20_000)
    save_curves({"loss": [(0, 1.0), (1, 0.5)]}, tmp_path / "curves.png", title="run")
    save_curves_of({"ddim": [Place(1, 2, "")]}, tmp_path / "sweep", title="run", x="nfe", y="fid")
    draw_sheet([Specimen(encoded(scene(), "PNG"), "title", "caption")], tmp_path / "contact.png")
    draw_histograms([(16, 16)], [3], tmp_path / "histograms.png")
    save_picture(image, tmp_path / "sample.png", texts={"ldm": "{}"})
    assert find_pictures(tmp_path).pictures == ["sample.png"]
    assert len(find_pictures(tmp_path).passed_over["figures that our own commands wrote"]) == 7


def test_a_list_of_ours_rules_its_folder_and_all_in_it(folder):
    entry = {"file": "d.webp", "bundle": "0"}
    (folder / "b" / "pictures.jsonl").write_text(json.dumps(entry) + "\n" + '{"file": "c.J')
    assert find_pictures(folder).pictures == ["a.png", "b/d.webp"]
    (folder / "pictures.jsonl").write_text(json.dumps({"file": "a.png", "bundle": "0"}) + "\n")
    found = find_pictures(folder)
    assert found.pictures == ["a.png"]
    assert [*found.passed_over.values()] == [["b/c.JPG", "b/d.webp"]]


@pytest.mark.parametrize(
    "line", ["{}", '{"file": "a.png", "text": "x"}', '{"file": "../a.png", "bundle": "0"}', "[", "7"]
)
def test_a_list_of_somebody_else_rules_nothing(folder, line):
    (folder / "pictures.jsonl").write_text(line + "\n")
    assert find_pictures(folder).pictures == ["a.png", "b/c.JPG", "b/d.webp"]


def test_a_link_to_a_picture_is_read_and_a_broken_one_is_not(folder):
    os.symlink(folder / "a.png", folder / "z.png")
    os.symlink(folder / "none.png", folder / "y.png")
    assert find_pictures(folder).pictures == ["a.png", "b/c.JPG", "b/d.webp", "z.png"]
