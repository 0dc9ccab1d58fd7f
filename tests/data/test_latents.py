"""Facts about stored moments and text states, and that training on them is training on pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

from ldm.codec import CPU_CHUNK
from ldm.config import build_data
from ldm.data import DataError
from ldm.data.augment import random_resized
from ldm.data.datamodule import PictureData
from ldm.data.index import ShardIndex
from ldm.data.latents import LatentData, StoredSplit
from ldm.data.shards import PictureDataset, scan_shard
from ldm.data.stored import (
    ORIGIN,
    StoredArrays,
    is_finite,
    stored_moments,
    stored_states,
    stored_tokens,
)
from ldm.data.streaming import EncodedPictures, StreamingPictureData

SIZE = 16


@pytest.fixture
def own_pictures(copy_emoji):
    return PictureDataset(str(copy_emoji()), split="val", size=SIZE)


def folders(pictures) -> list:
    return sorted((pictures.index.root / "latents").iterdir())


def test_stored_moments_are_the_codecs_to_the_bit(own_pictures, codec):
    moments = stored_moments(own_pictures, codec, mirrored=True).arrays()
    images = own_pictures.images()
    for mirrored, changed in ((False, images), (True, images.flip(-1))):
        stored = np.stack([moments.read(number)[int(mirrored)] for number in range(len(moments))])
        assert stored.dtype == np.float16
        assert torch.equal(torch.from_numpy(stored), codec.moments(changed))
    posterior = codec.encode_images(images)
    direct = torch.stack([posterior.mean, posterior.logvar], dim=1)
    assert_close(codec.moments(images).float(), direct, rtol=1e-3, atol=1e-3)  # half precision's steps


@pytest.mark.parametrize("count", [1, 5, CPU_CHUNK, CPU_CHUNK + 3])
def test_moments_and_states_do_not_depend_on_the_company(codec, count):
    images = torch.randint(256, (CPU_CHUNK + 3, 3, SIZE, SIZE), dtype=torch.uint8)
    tokens = codec.tokenizer.encode([f"a picture of {number}" for number in range(len(images))])
    assert torch.equal(codec.moments(images)[-count:], codec.moments(images[-count:]))
    assert torch.equal(codec.context(tokens)[-count:], codec.context(tokens[-count:]))


def test_the_codec_stays_in_full_precision_under_autocast(codec):
    images = torch.randint(256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = codec.moments(images)
    assert torch.equal(inside, codec.moments(images))


def test_states_are_made_of_the_tokens(own_pictures, codec):
    tokens, states = stored_tokens(own_pictures, codec), stored_states(own_pictures, codec)
    captions = [text for own in own_pictures.texts() for text in own]
    rows = torch.from_numpy(np.concatenate([tokens.arrays().read(number) for number in range(4)]))
    assert torch.equal(rows.long(), codec.tokenizer.encode(captions))
    stored = torch.from_numpy(np.concatenate([states.arrays().read(number) for number in range(4)]))
    assert torch.equal(codec.context(rows), stored)
    assert_close(stored.float(), codec.encode_prompts(captions), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("texts", [stored_states, stored_tokens])
def test_a_row_has_a_caption_of_its_own_picture(own_pictures, codec, texts):
    moments = stored_moments(own_pictures, codec, mirrored=False).arrays()
    split = StoredSplit({"moments": moments}, texts(own_pictures, codec).arrays(), flips=False, seed=1)
    for number, own in enumerate(own_pictures.texts()):
        possible = codec.context(codec.tokenizer.encode(own))
        for position in range(5):
            row = split.sample(number, position)
            assert (row["index"], row["position"]) == (number, position)
            stored = torch.from_numpy(np.array(row[split.kind]))[None]
            context = stored if split.kind == "context" else codec.context(stored)
            assert any(torch.equal(context[0], own) for own in possible)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_on_stored_latents_is_training_on_pictures_to_the_bit(
    copy_emoji, diffusion_stage, make_trainer, precision, flip
):
    root = str(copy_emoji())

    def trained(kind, **options) -> dict[str, torch.Tensor]:
        stage = diffusion_stage()
        pictures = PictureData(root=root, size=SIZE, batch_size=6, seed=3, flip=flip)
        make_trainer(5, precision=precision).fit(  # into the second epoch
            stage, datamodule=kind(pictures=pictures, codec=stage.codec, **options)
        )
        return stage.state_dict()

    encoded = trained(EncodedPictures, exact=True)
    for texts in (stored_states, stored_tokens):
        stored = trained(LatentData, texts=texts)
        assert all(torch.equal(stored[name], encoded[name]) for name in encoded)


def test_batches_are_encoded_in_the_precision_of_the_training(copy_emoji, codec, make_trainer):
    pictures = PictureData(root=str(copy_emoji()), size=SIZE, batch_size=6, seed=3)
    batch = next(iter(pictures.val_dataloader()))

    def encoded(precision: str, **options: bool):
        data = EncodedPictures(pictures=pictures, codec=codec, **options)
        data.trainer = make_trainer(1, precision=precision)
        return data.on_after_batch_transfer(batch, 0)

    exact, half = encoded("32-true"), encoded("bf16-mixed")
    for name in ("mean", "std", "context"):
        assert torch.equal(encoded("bf16-mixed", exact=True)[name], exact[name])
        assert not torch.equal(half[name], exact[name])
        assert (half[name] - exact[name]).norm() < 0.02 * exact[name].norm()  # bfloat16 has eight bits


def test_flips_change_the_training(copy_emoji, codec, make_trainer):
    root = str(copy_emoji())
    batches = []
    for flip in (False, True):
        pictures = PictureData(root=root, size=SIZE, batch_size=20, seed=3, flip=flip)
        data = LatentData(pictures=pictures, codec=codec)
        data.trainer = make_trainer(1)
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    straight, mirrored = (batch["moments"] for batch in batches)
    changed = (straight != mirrored).flatten(1).any(dim=1)
    assert 0 < changed.sum() < len(changed)  # some, since a fair coin decides and some captions forbid it


def test_crops_that_can_not_be_stored_are_refused(emoji, codec):
    pictures = PictureData(root=str(emoji), size=SIZE, batch_size=4, crop=random_resized)
    with pytest.raises(
        ValueError, match=r"data\.crop and data\.buckets: latents are stored of centred squares"
    ):
        LatentData(pictures=pictures, codec=codec)


def test_streamed_pictures_are_encoded_at_each_step_and_never_stored(
    codec, emoji, diffusion_stage, make_trainer
):
    shard = ShardIndex.load(emoji).split("train")[0].file
    streamed = StreamingPictureData(root=str(emoji / shard), size=SIZE, batch_size=2, shuffle=5)
    trainer, before = make_trainer(2), set(emoji.rglob("*"))
    trainer.fit(diffusion_stage(), EncodedPictures(pictures=streamed, codec=codec))
    assert trainer.global_step == 2
    assert set(emoji.rglob("*")) == before
    with pytest.raises(ValueError, match=r"data=StreamingPictureData: latents are stored of prepared sets"):
        LatentData(pictures=streamed, codec=codec)


def test_what_is_stored_is_made_once(own_pictures, codec):
    stored_moments(own_pictures, codec, mirrored=False).arrays()
    (folder,) = folders(own_pictures)
    stamp = (folder / "shards.json").stat().st_mtime_ns
    stored_moments(own_pictures, codec, mirrored=False).arrays()
    assert folders(own_pictures) == [folder]
    assert (folder / "shards.json").stat().st_mtime_ns == stamp


def test_other_weights_scale_size_or_pictures_have_a_folder_of_their_own(own_pictures, codec):
    root = str(own_pictures.index.root)
    stored_moments(own_pictures, codec, mirrored=False).arrays()
    stored_moments(own_pictures, codec, mirrored=True).arrays()
    assert len(folders(own_pictures)) == 2
    stored_moments(own_pictures, replace(codec, latent_scale=codec.latent_scale * 2), mirrored=False).arrays()
    assert len(folders(own_pictures)) == 3
    stored_moments(PictureDataset(root, split="val", size=32), codec, mirrored=False).arrays()
    assert len(folders(own_pictures)) == 4
    stored_moments(PictureDataset(root, split="train", size=SIZE), codec, mirrored=False).arrays()
    assert len(folders(own_pictures)) == 5


def test_a_stopped_computation_goes_on_after_its_last_whole_shard(own_pictures, codec, monkeypatch):
    monkeypatch.setattr("ldm.data.stored.SAMPLES_PER_SHARD", 2)
    stored_moments(own_pictures, codec, mirrored=False).arrays()
    (folder,) = folders(own_pictures)
    first, second = sorted(folder.glob("*.tar"))
    whole = second.read_bytes()
    stamp = first.stat().st_mtime_ns
    (folder / "shards.json").unlink()
    second.unlink()
    stored_moments(own_pictures, codec, mirrored=False).arrays()
    assert first.stat().st_mtime_ns == stamp
    assert second.read_bytes() == whole


def test_latents_made_from_something_else_are_refused(own_pictures, codec):
    origin = stored_moments(own_pictures, codec, mirrored=False).origin
    folder = stored_moments(own_pictures, codec, mirrored=False).arrays().folder
    other = stored_moments(
        own_pictures, replace(codec, latent_shift=codec.latent_shift + 1), mirrored=False
    ).origin
    assert StoredArrays(folder, origin=origin).folder == folder
    with pytest.raises(DataError, match=r"made from something else: autoencoder \w+ instead of \w+"):
        StoredArrays(folder, origin=other)
    (folder / ORIGIN).unlink()
    with pytest.raises(DataError, match=r"made_from\.json can't be read"):
        StoredArrays(folder, origin=origin)


def moments_of(pictures, codec) -> StoredArrays:
    return stored_moments(pictures, codec, mirrored=False).arrays()


def states_of(pictures, codec) -> StoredArrays:
    return stored_states(pictures, codec).arrays()


def tokens_of(pictures, codec) -> StoredArrays:
    return stored_tokens(pictures, codec).arrays()


@pytest.mark.parametrize("stored", [moments_of, states_of, tokens_of])
@pytest.mark.parametrize("damage", ["a bit", "zeros", "cut", "gone"])
def test_damaged_arrays_are_named_and_computed_again(own_pictures, codec, capsys, stored, damage):
    arrays = stored(own_pictures, codec)
    expected = [arrays.read(number) for number in range(len(arrays))]
    path = arrays.folder / arrays.reader.shards[0].file
    offset, size = arrays.reader.shards[0].images[1]
    whole = path.read_bytes()
    changed = {
        "a bit": whole[: offset + size - 3]
        + bytes([whole[offset + size - 3] ^ 1])
        + whole[offset + size - 2 :],
        "zeros": whole[: offset + 128] + bytes(size - 128) + whole[offset + size :],
        "cut": whole[:-1],
    }
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    capsys.readouterr()
    again = stored(own_pictures, codec)
    (line,) = capsys.readouterr().out.splitlines()
    assert str(path) in line
    assert line.endswith("it is computed again")
    assert all(np.array_equal(again.read(number), rows) for number, rows in enumerate(expected))


@pytest.mark.parametrize("stored", [moments_of, states_of, tokens_of])
def test_a_set_too_large_to_hash_at_each_start_is_checked_as_it_is_read(
    own_pictures, codec, stored, monkeypatch
):
    monkeypatch.setattr("ldm.data.index.CHECKED_AT_START", 0)
    arrays = stored(own_pictures, codec)
    shard = arrays.reader.shards[0]
    with (arrays.folder / shard.file).open("r+b") as stream:
        stream.seek(shard.images[2][0] + 200)
        stream.write(bytes(range(8)))
    again = stored(own_pictures, codec)
    again.read(1)
    with pytest.raises(DataError, match=rf"sample '{shard.keys[2]}' differs .* remove .* computed again"):
        again.read(2)


def test_only_the_damaged_shard_is_computed_again(own_pictures, codec, monkeypatch):
    monkeypatch.setattr("ldm.data.stored.SAMPLES_PER_SHARD", 2)
    moments = stored_moments(own_pictures, codec, mirrored=False).arrays()
    first, second = (moments.folder / shard.file for shard in moments.reader.shards)
    whole, stamp = second.read_bytes(), first.stat().st_mtime_ns
    second.write_bytes(whole[:700] + bytes(100) + whole[800:])
    stored_moments(own_pictures, codec, mirrored=False).arrays()
    assert (second.read_bytes(), first.stat().st_mtime_ns) == (whole, stamp)


def test_a_shard_changed_while_the_computation_was_stopped_is_computed_again(own_pictures, codec):
    states = stored_states(own_pictures, codec).arrays()
    path, expected = states.folder / states.reader.shards[0].file, states.read(0)
    offset, size = states.reader.shards[0].images[0]
    (states.folder / "shards.json").unlink()
    whole = path.read_bytes()
    path.write_bytes(whole[: offset + 128] + bytes(size - 128) + whole[offset + size :])
    assert np.array_equal(stored_states(own_pictures, codec).arrays().read(0), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_that_are_no_numbers_are_refused_by_name(own_pictures, codec, value):
    moments = stored_moments(own_pictures, codec, mirrored=False).arrays()
    shard = moments.reader.shards[0]
    start, size = shard.images[2]
    with (moments.folder / shard.file).open("r+b") as stream:
        stream.seek(start + size - 2)
        stream.write(np.float16(value).tobytes())
    assert moments.read(1).shape == (1, *moments.shape)
    with pytest.raises(DataError, match=f"sample '{shard.keys[2]}' differs from what was prepared"):
        moments.read(2)
    shard = scan_shard(moments.folder / shard.file, split=shard.split)  # as if they had been computed so
    ShardIndex(root=moments.folder, name="moments", shards=(shard,)).save()
    with pytest.raises(DataError, match=f"sample '{shard.keys[2]}' holds NaN or Inf"):
        StoredArrays(moments.folder, origin=stored_moments(own_pictures, codec, mirrored=False).origin).read(
            2
        )


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 65504, -65504, 6e-8, -0.0])
def test_a_number_of_16_bits_is_finite_if_numpy_says_so(value):
    values = np.array([[1.0, value]], dtype=np.float16)
    assert is_finite(values) == np.isfinite(values).all()


def test_an_origin_is_written_in_words(own_pictures, codec):
    folder = stored_moments(own_pictures, codec, mirrored=False).arrays().folder
    origin = json.loads((folder / ORIGIN).read_text())
    assert set(origin) == {"autoencoder", "pictures", "split", "transform", "mirrored"}


def test_a_damaged_picture_ends_the_computation_without_an_index(own_pictures, codec):
    (shard,) = own_pictures.index.split("val")
    path = own_pictures.index.root / shard.file
    content = bytearray(path.read_bytes())
    content[shard.images[3][0]] ^= 255  # the last picture is none any more
    path.write_bytes(content)
    with pytest.raises(DataError, match="differs from what was prepared"):
        stored_moments(own_pictures, codec, mirrored=False).arrays()
    (folder,) = folders(own_pictures)
    assert [path.name for path in folder.iterdir()] == [ORIGIN]


def test_a_data_module_that_encodes_is_given_the_codec_of_its_stage_and_no_other_is(emoji, diffusion_stage):
    pictures = {
        "_target_": "ldm.data.datamodule.PictureData",
        "root": str(emoji),
        "size": SIZE,
        "batch_size": 2,
    }
    stage = diffusion_stage()
    for name in ("latents.LatentData", "streaming.EncodedPictures"):
        node = {"_target_": f"ldm.data.{name}", "pictures": pictures}
        assert build_data(OmegaConf.create({"model": {"datamodule": node}}), stage).codec is stage.codec
    assert isinstance(build_data(OmegaConf.create({"model": {"datamodule": pictures}}), stage), PictureData)
