"""Folders of anybody's pictures."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from ldm.evaluation.pictures import PictureFolder, fit, found_in
from ldm.evaluation.protocol import Caption, CaptionSet

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_a_folder_is_read_in_the_order_of_its_paths_with_its_names_as_captions(tmp_path, save_pictures):
    folder = PictureFolder(save_pictures(tmp_path, {"b/red_dog": RED, "a": BLUE}))
    assert folder.keys() == ["a", "b/red_dog"]
    assert folder.texts() == [["a"], ["red dog"]]
    assert folder.image(1).flatten(1).unique(dim=1).flatten().tolist() == list(RED)


def test_captions_of_a_csv_come_before_names(tmp_path, save_pictures):
    folder = PictureFolder(save_pictures(tmp_path, {"a": RED, "b": BLUE}))
    (tmp_path / "captions.csv").write_text('file,caption\na.png,"all, red"\nb.png,blue\n')
    assert folder.texts() == [["all, red"], ["blue"]]
    (tmp_path / "captions.csv").write_text("\ufefffile;caption\r\na.png;all, red\r\n\r\nb.png;blue\r\n")
    assert folder.texts() == [["all, red"], ["blue"]]
    (tmp_path / "captions.csv").write_text("file,caption\na.png,red\nb.png,blue\na.png,green\n")
    with pytest.raises(ValueError, match=r"has several captions of a\.png: keep one"):
        folder.texts()
    (tmp_path / "captions.csv").write_text("file,caption\na.png,red\nb.png\n")
    with pytest.raises(ValueError, match=r"captions\.csv, line 3: 1 cells under 2 columns"):
        folder.texts()
    (tmp_path / "captions.csv").write_text("file,caption\na.png,red\n")
    with pytest.raises(ValueError, match=r"lacks 1 of the 2 files, b\.png first"):
        folder.texts()


def test_the_identity_of_a_folder_is_its_pixels(tmp_path, save_pictures):
    one, same, other = (
        PictureFolder(save_pictures(tmp_path / name, {"a": colour})).sha256
        for name, colour in (("one", RED), ("same", RED), ("other", BLUE))
    )
    assert one == same
    assert one != other


def test_broken_differing_and_missing_pictures_are_each_refused_in_a_sentence(tmp_path, save_pictures):
    with pytest.raises(ValueError, match="there is no folder"):
        PictureFolder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        PictureFolder(tmp_path / "empty")
    save_pictures(tmp_path / "mixed", {"a": RED, "c": RED})
    save_pictures(tmp_path / "mixed", {"b": RED}, side=20)
    with pytest.raises(ValueError, match=r"b\.png has 20 x 20 pixels; 2 of 3 .* have 16 x 16: remove it"):
        PictureFolder(tmp_path / "mixed")
    assert PictureFolder(tmp_path / "mixed", size=8).image(1).shape == (3, 8, 8)
    broken = save_pictures(tmp_path / "broken", {"a": RED}) / "a.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"a\.png can't be decoded"):
        PictureFolder(broken.parent, size=16).image(0)
    Image.new("RGB", (16, 16)).save(save_pictures(tmp_path / "twins", {"a": RED}) / "a.jpg")
    with pytest.raises(ValueError, match="differ only in their extension"):
        PictureFolder(tmp_path / "twins")


def test_pictures_are_found_by_the_key_of_their_caption_with_or_without_the_set(tmp_path, save_pictures):
    captions = [Caption(text="x", key=key, row=0) for key in ("p1", "p2")]
    twice = CaptionSet(name="train", split=None, captions=None, samples=2, metrics=())
    names = {"train/p1": RED, "train/p1_1": BLUE, "p2": BLUE, "p2_1": RED}
    folder = PictureFolder(save_pictures(tmp_path, names))
    found = found_in(folder, path="theirs")(twice.requests(captions, seed_base=0))
    assert found[:, 0, 0, 0].tolist() == [255, 0, 0, 255]
    with pytest.raises(ValueError, match="theirs has no picture 'val/p1' among its 4"):
        found_in(folder, path="theirs")(replace(twice, name="val").requests(captions, seed_base=0))


def test_pictures_are_brought_to_a_size_and_rounded_not_cut_off():
    images = torch.tensor([[0, 255], [255, 255]], dtype=torch.uint8).expand(1, 3, 2, 2)
    assert torch.equal(fit(images, size=2), images)
    assert fit(images, size=1).flatten().tolist() == [191, 191, 191]  # 191.25
    assert (
        fit(torch.tensor([[[[0, 1], [1, 1]]] * 3], dtype=torch.uint8), size=1).flatten().tolist() == [1] * 3
    )
