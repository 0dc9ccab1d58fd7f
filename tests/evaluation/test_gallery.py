"""Real pictures and the features that are kept of them."""

import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ldm.evaluation.feature_pass import Observers
from ldm.evaluation.reference_set import CHECKSUM, FeatureCache, ReferenceSet, identity_of


class Counting:
    """An extractor that counts the pictures it has looked at."""

    def __init__(self, inner):
        self.inner, self.dims, self.identity, self.seen = inner, inner.dims, inner.identity, 0

    def __call__(self, images):
        self.seen += len(images)
        return self.inner(images)


@pytest.fixture
def counting(observers):
    return Counting(observers.pictures["colours"])


@pytest.fixture
def look(gallery, counting, tmp_path):
    def make(**options):
        return ReferenceSet(
            gallery.splits,
            observers=Observers(pictures={"colours": counting}),
            cache=FeatureCache(folder=tmp_path / "features"),
            progress=False,
            **options,
        )

    return make


def test_features_are_kept_and_read_back_to_the_bit(look, counting, gallery):
    assert torch.equal(look().features["colours"], gallery.features["colours"])
    assert counting.seen == 26
    assert torch.equal(look().features["colours"], gallery.features["colours"])
    assert counting.seen == 26


def test_what_is_kept_is_a_safetensors_file_that_tells_what_it_is_of(look, counting, gallery, tmp_path):
    look()
    files = list((tmp_path / "features").iterdir())
    tables = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["features"] == "colours"
            tables.append(file.get_tensor("features"))
    assert {len(table) for table in tables} == {20, 6}
    assert torch.equal(torch.cat(sorted(tables, key=len, reverse=True)), gallery.features["colours"])


def test_a_file_that_another_program_wrote_is_read(look, counting, gallery, tmp_path):
    look()
    for path in (tmp_path / "features").iterdir():
        with safe_open(path, framework="pt") as file:
            told, table = file.metadata(), file.get_tensor("features").clone()
        save_file({"features": table}, path, metadata=told)
    assert torch.equal(look().features["colours"], gallery.features["colours"])
    assert counting.seen == 26


def test_features_of_some_pictures_come_in_the_order_that_was_asked_for(gallery):
    rows = torch.tensor([21, 3, 3, 0])
    found = gallery.picked(rows)["colours"]
    assert torch.equal(found, gallery.features["colours"][rows])


def test_another_network_has_other_features_and_another_reference(look, counting):
    first = look()
    before = first.identity(Observers(pictures={"colours": counting}))
    counting.identity = dataclasses.replace(counting.identity, size=32)
    second = look()
    assert counting.seen == 52
    assert second.identity(Observers(pictures={"colours": counting})) != before


def test_features_that_nothing_reads_are_not_taken(look, counting):
    assert look(wanted=()).features == {}
    assert counting.seen == 0


def test_a_damaged_file_is_made_anew_and_one_of_another_protocol_refused(look, counting, tmp_path):
    whole = look().features["colours"]
    for file in (tmp_path / "features").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(look().features["colours"], whole)
    assert counting.seen == 52
    told = identity_of("0" * 64, counting.identity, "colours")
    for file in (tmp_path / "features").iterdir():
        save_file({"features": whole}, file, metadata=told)
    with pytest.raises(ValueError, match="features of another protocol, their pictures differ"):
        look()


@pytest.mark.parametrize("damage", ["a bit", "zeros", "no checksum"])
def test_changed_features_are_named_and_computed_again(look, counting, tmp_path, capsys, damage):
    whole = look().features["colours"].clone()
    files = list((tmp_path / "features").iterdir())
    for file in files:
        content = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        if damage == "a bit":
            content[-2] ^= 2
        elif damage == "zeros":
            content[start:] = bytes(len(content) - start)
        else:  # as an earlier version wrote it
            with safe_open(file, framework="pt") as opened:
                told, table = opened.metadata(), opened.get_tensor("features").clone()
            del told[CHECKSUM]
            save_file({"features": table}, file, metadata=told)
            content = file.read_bytes()
        file.write_bytes(content)
    capsys.readouterr()
    assert torch.equal(look().features["colours"], whole)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f"{file} is damaged: its features are computed again" for file in files)
    assert counting.seen == 52
    assert torch.equal(look().features["colours"], whole)
    assert counting.seen == 52


def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(gallery, observers, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cache = FeatureCache(folder=tmp_path / "file" / "features")
    again = ReferenceSet(gallery.splits, observers=observers, cache=cache, progress=False)
    assert torch.equal(again.features["colours"], gallery.features["colours"])
    assert "not kept" in capsys.readouterr().out
