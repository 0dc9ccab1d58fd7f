"""Facts about the cache of latents and text states."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ldm.data.index import DataError
from ldm.data.latents import cached_latents
from ldm.data.pictures import PictureDataset


@pytest.fixture
def own_pictures(copy_emoji):
    return PictureDataset(str(copy_emoji()), split="val", size=16)


def folders(pictures) -> list:
    return sorted((pictures.index.root / "latents").iterdir())


def test_the_cache_holds_what_the_codec_makes(own_pictures, codec):
    arrays = cached_latents(own_pictures, codec, batch_size=3)
    posterior = codec.encode_images(own_pictures.images())
    states = codec.encode_prompts([text for own in own_pictures.texts() for text in own])
    for stored, direct in (
        (arrays.mean, posterior.mean),
        (arrays.std, posterior.std),
        (arrays.states, states),
    ):
        assert stored.dtype == np.float16
        assert_close(torch.from_numpy(stored.astype(np.float32)), direct, rtol=1e-3, atol=1e-4)


def test_a_row_has_a_caption_of_its_own_picture(own_pictures, codec):
    arrays = cached_latents(own_pictures, codec)
    for number, texts in enumerate(own_pictures.texts()):
        for choice, text in enumerate(texts):

            def choose(count, choice=choice, texts=texts):
                assert count == len(texts)
                return choice

            row = arrays.row(number, caption=choose, position=40)
            assert (row["index"], row["position"]) == (number, 40)
            assert_close(row["context"], codec.encode_prompts([text])[0], rtol=1e-3, atol=2e-3)


def test_the_cache_is_made_once(own_pictures, codec):
    cached_latents(own_pictures, codec)
    (folder,) = folders(own_pictures)
    stamp = (folder / "mean.npy").stat().st_mtime_ns
    cached_latents(own_pictures, codec)
    assert folders(own_pictures) == [folder]
    assert (folder / "mean.npy").stat().st_mtime_ns == stamp


def test_other_weights_scale_size_or_pictures_have_a_cache_of_their_own(own_pictures, codec, emoji):
    cached_latents(own_pictures, codec)
    cached_latents(own_pictures, replace(codec, latent_scale=codec.latent_scale * 2))
    assert len(folders(own_pictures)) == 2
    cached_latents(PictureDataset(str(own_pictures.index.root), split="val", size=32), codec)
    assert len(folders(own_pictures)) == 3
    cached_latents(PictureDataset(str(own_pictures.index.root), split="train", size=16), codec)
    assert len(folders(own_pictures)) == 4


def test_a_changed_weight_changes_the_fingerprint(codec, build_network, specs):
    other = build_network(specs["autoencoder"], 0)
    other.load_state_dict(codec.autoencoder.state_dict())
    assert replace(codec, autoencoder=other).fingerprint() == codec.fingerprint()
    next(other.parameters()).data.view(-1)[0] += 1
    assert replace(codec, autoencoder=other).fingerprint() != codec.fingerprint()


def test_a_failed_computation_leaves_nothing(own_pictures, codec):
    (shard,) = own_pictures.index.split("val")
    path = own_pictures.index.root / shard.file
    content = bytearray(path.read_bytes())
    content[shard.images[3][0]] ^= 255  # the last picture is none any more
    path.write_bytes(content)
    with pytest.raises(DataError, match="can't be decoded"):
        cached_latents(own_pictures, codec, batch_size=2)
    assert folders(own_pictures) == []
