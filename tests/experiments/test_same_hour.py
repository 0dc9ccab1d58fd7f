"""A rehearsal of benchmarks/same_hour at tiny size: peers train for their seconds, resume and generate."""

import csv
import json
from itertools import count

import pytest

from benchmarks.same_hour.__main__ import Plan, write_page
from benchmarks.same_hour.peer import Peer, unet_of
from benchmarks.same_hour.race import RACES, generate_listed, spend, used
from ldm.data.shards import PictureDataset


@pytest.fixture
def task(emoji, bundle_path, tmp_path):
    """`task(side, seconds)`: a peer's task on 24 pictures of 16 px."""

    def make(side, seconds):
        piece = tmp_path / side
        piece.mkdir(exist_ok=True)
        sizes = ["backbone.channels=32", "backbone.latent_channels=4", "backbone.transformer.context_dim=16"]
        sizes.append("backbone.transformer.head_dim=16")
        data = [f"data.root={emoji}", "data.size=16", "batch_size=4"]
        codec = [f"codec.{part}={bundle_path}" for part in ("autoencoder", "text_encoder")]
        overrides = ["+experiment=emoji", *sizes, *data, *codec]
        about = {"piece": str(piece), "side": side, "seed": 0, "seconds": seconds}
        return about | {"overrides": overrides}

    return make


@pytest.mark.parametrize("side", ["recipe", "careful"])
def test_a_peer_trains_until_its_seconds_are_used_and_generates_what_is_listed(task, tmp_path, side):
    peer = Peer(task(side, 3.0), clock=count().__next__)
    peer.train()
    trained = json.loads((peer.piece / "training.json").read_text())
    assert trained["steps"] == 3
    prompts, folder = tmp_path / "prompts.csv", tmp_path / "pictures"
    rows = [["file", "caption", "seed"], ["a.png", "red apple", 1], ["b.png", "a cat", 2]]
    with prompts.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    peer.generate(prompts, folder, scale=2.0)
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png"]
    generate_listed(prompts, folder, lambda *_: pytest.fail("pictures that are there are not made again"))


def test_a_piece_that_has_used_its_seconds_trains_no_further_step(task):
    peer = Peer(task("recipe", 100.0))
    spend(peer.piece, 100.0)
    peer.train()
    assert json.loads((peer.piece / "training.json").read_text())["steps"] == 0
    assert used(peer.piece) == 100.0


@pytest.mark.parametrize("count", [2_000_000, 7_000_000, 9_700_000])
def test_a_peer_has_our_number_of_parameters(count):
    net = unet_of(count, latents=(8, 16), context=128)
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(count, rel=0.2)


def test_the_pictures_of_a_peer_are_those_of_ours(task, emoji):
    peer = Peer(task("recipe", 1.0))
    pixels, captions, numbers = next(iter(peer_batches(peer)))
    pictures = PictureDataset(str(emoji), split="train", size=16)
    for pixel, caption, number in zip(pixels, captions, numbers.tolist(), strict=True):
        assert caption in pictures.captions(number)
        shown = ((pixel + 1) * 127.5).round()
        assert (shown - pictures.image(number)).abs().mean() < 4  # levels of 255: Lanczos against bicubic


def peer_batches(peer):
    from benchmarks.diffusers_recipe import batches

    return batches(PictureDataset(peer.config.data.root, split="train", size=16), 4)


def test_the_page_has_a_row_for_each_piece_and_the_bounds(tmp_path):
    plan = Plan(race=RACES["emoji"], root="", out=tmp_path, seconds=9.0, scales=(1.0,), overrides=())
    numbers = {"kd_efficientnet_lite0": {"value": 0.5, "floor": 0.0}}
    row = {"side": "recipe", "seed": 0, "scale": "1", "seconds": 9.2, "steps": 12, "results": "x"}
    write_page(plan, [row | {"numbers": numbers}], {"kd_efficientnet_lite0": 0.0125})
    page = (tmp_path / "README.md").read_text()
    assert "| recipe 0 | 1 | 9 | 12 | 0.5 |" in page
    assert "| floor |  |  |  | 0 |" in page
    assert "| ceiling |  |  |  | 0.0125 |" in page
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["steps"] == 12
