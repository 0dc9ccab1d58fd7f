"""A tokenizer of pictures alone generates nothing, and its round trip is measured."""

import json

import pytest
import torch

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.generators.generator import Generator, open_generator


def test_a_tokenizer_reconstructs_and_says_that_it_generates_nothing(codes_path, codes, pictures):
    opened = open_generator(Bundle.open(codes_path)).generator
    assert isinstance(opened, Generator)
    assert opened.size == 16
    images = pictures.val.images()
    assert torch.equal(opened.reconstruct(images), codes.reconstruct(images))
    with pytest.raises(UserError, match="is a tokenizer of pictures, which generates none"):
        opened(["a cat"], [1])
    with pytest.raises(UserError, match="has no option 'scale'"):
        opened.with_options(scale=2.0)


def test_evaluation_measures_the_round_trip_alone(codes_path, copy_emoji, command, tmp_path):
    parts = ("extractors", "distances")
    small = [f"protocol.{part}.efficientnet_lite0.size=32" for part in parts]
    places = [f"data.root={copy_emoji()}", f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}"]
    command("ldm.evaluate", f"bundle={codes_path}", "protocol=round_trip", *places, *small)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert {row["metric"] for row in rows} == {
        "psnr",
        "ssim",
        "perceptual_efficientnet_lite0",
        "rfd_efficientnet_lite0",
    }
    assert {row["set"] for row in rows} == {"autoencoder"}
