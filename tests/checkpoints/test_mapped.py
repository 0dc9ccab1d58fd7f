"""Facts about weights that stay in their file, and about pipelines that give back what they don't need."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.checkpoints import mapped
from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.mapped import SMAPS, give_back, unwritten
from ldm.checkpoints.pipeline import open_pipeline

pytestmark = pytest.mark.skipif(not SMAPS.is_file(), reason="only Linux tells of a process's mappings")
MB = 2**20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(8 * MB, dtype=torch.float32), "b": torch.ones(3)}, path)
    return path


def resident(path) -> int:
    """Bytes of a file's mappings that are in memory."""
    sizes, own = 0, False
    for line in SMAPS.read_text().splitlines():
        if not line.split()[0].endswith(":"):
            own = line.endswith(f" {path}")
        elif own and line.startswith("Rss:"):
            sizes += 1024 * int(line.split()[1])
    return sizes


def test_what_is_given_back_leaves_memory_and_is_read_again(file):
    state = load_file(file)
    assert state["a"].sum() > 0
    assert resident(file) >= 32 * MB
    give_back(file, least=0)
    assert resident(file) < MB
    assert torch.equal(state["a"], torch.arange(8 * MB, dtype=torch.float32))
    assert state["b"].tolist() == [1, 1, 1]


def test_what_was_written_to_is_left_alone(file):
    state = load_file(file)
    state["b"][0] = 7.0
    assert list(unwritten(file)) == []
    give_back(file, least=0)
    assert state["b"].tolist() == [7, 1, 1]


def test_a_small_file_is_not_worth_the_look(file):
    state = load_file(file)
    assert state["a"].sum() > 0
    give_back(file)
    assert resident(file) >= 32 * MB


def test_a_file_that_was_removed_is_left_alone(file):
    state = load_file(file)
    file.unlink()
    give_back(file, least=0)
    assert state["b"].tolist() == [1, 1, 1]


def test_a_pipeline_that_gives_back_draws_the_same(bundle_path, monkeypatch):
    expected = open_pipeline(Bundle.open(bundle_path))(["a cat"] * 2, [1, 2])
    given = []

    def watched(path):
        given.append(path.name)
        give_back(path, least=0)

    monkeypatch.setattr("ldm.checkpoints.bundle.give_back", watched)
    pipeline = open_pipeline(Bundle.open(bundle_path))
    given.clear()
    for _ in range(2):
        assert torch.equal(pipeline(["a cat"] * 2, [1, 2]), expected)
    parts = [name.removesuffix(".safetensors") for name in given]
    assert parts == ["text_encoder", "text_encoder", "backbone"] * 2


def test_weights_that_are_held_cast_draw_what_autocast_draws(bundle_path, monkeypatch):
    held = open_pipeline(Bundle.open(bundle_path), precision="bfloat16")
    whole = open_pipeline(Bundle.open(bundle_path)).with_options(precision=torch.bfloat16)
    assert held.net.conv_in.weight.dtype == torch.bfloat16
    assert held.net.norm_out.weight.dtype == whole.net.conv_in.weight.dtype == torch.float32
    assert torch.equal(held.latents(["a cat"], [1]), whole.latents(["a cat"], [1]))


def test_a_network_that_is_opened_is_mapped_not_copied(bundle_path, tmp_path):
    path = shutil.copytree(bundle_path, tmp_path / "bundle")
    net = Bundle.open(path).network("backbone")
    (first, last), *others = unwritten(path / "backbone.safetensors")
    assert not others
    assert all(first <= parameter.data_ptr() < last for parameter in net.parameters())


def test_a_system_without_the_list_is_left_alone(file, monkeypatch, tmp_path):
    monkeypatch.setattr(mapped, "SMAPS", tmp_path / "none")
    assert list(unwritten(file)) == []
    give_back(file, least=0)
