"""Facts about codes of pictures: whatever their batch, on the disk, and beside captions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.codec import PictureCodes, to_float, to_uint8
from ldm.data import DataError
from ldm.data.codes import CodeData, stored_codes
from ldm.data.datamodule import PictureData
from ldm.data.stored import ORIGIN
from ldm.generators.code_bundle import open_codes
from ldm.models.picture_tokenizers import CodeLevel


def test_a_picture_has_the_same_codes_and_codes_the_same_picture_whatever_their_batch(codes, pictures):
    images = pictures.train.images()
    together = codes.encode_images(images)
    assert together.shape == (20, 16)
    alone = torch.cat([codes.encode_images(image[None]) for image in images])
    assert torch.equal(alone, together)
    decoded = codes.decode(together)
    assert torch.equal(torch.cat([codes.decode(row[None]) for row in together]), decoded)
    assert torch.equal(codes.reconstruct(images), decoded)
    expected = to_uint8(codes.net.reconstruct(to_float(images)))
    assert (decoded.int() - expected.int()).abs().max() <= 1  # a rounding of another batch


def test_the_hash_is_of_weights_and_sizes(codes, codes_path):
    assert codes.sha256 == open_codes(Bundle.open(codes_path)).sha256
    net = open_codes(Bundle.open(codes_path)).net
    net.quantizer.codebook[3, 2] += 1e-3
    assert PictureCodes(net).sha256 != codes.sha256


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (torch.zeros(2, 9, dtype=torch.int64), "9 codes a picture: the tokenizer has 16"),
        (torch.full((2, 16), 16), "codes from 16 to 16: those of the tokenizer are 0 to 15"),
        (torch.full((2, 16), -1), "codes from -1 to -1"),
    ],
)
def test_codes_of_another_tokenizer_are_refused(codes, rows, sentence):
    with pytest.raises(UserError, match=sentence):
        codes.decode(rows)


def test_pictures_of_another_size_and_other_bundles_are_refused(codes, bundle_path, emoji):
    with pytest.raises(UserError, match=r"32x32 pixels: the tokenizer's are 16x16"):
        codes.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(BundleError, match="has no image_tokenizer"):
        open_codes(Bundle.open(bundle_path))
    data = PictureData(root=str(emoji), size=32, batch_size=4)
    with pytest.raises(UserError, match=r"data\.size=32: the tokenizer was trained on 16 px"):
        CodeData(pictures=data, codes=codes)


@pytest.fixture
def data(copy_emoji, codes, make_trainer):
    """Codes beside a copy of the pictures, half of which are mirrored."""
    pictures = PictureData(root=str(copy_emoji()), size=16, batch_size=4, seed=3, flip=True)
    pictures.trainer = make_trainer(3)
    made = CodeData(pictures=pictures, codes=codes)
    made.trainer = pictures.trainer
    return made


def test_batches_have_the_codes_of_the_pictures_that_others_see(data, codes):
    assert data.missing_bytes().keys() == {"codes"}
    data.prepare_data()
    batches, pictures = list(data.train_dataloader()), list(data.pictures.train_dataloader())
    for batch, seen in zip(batches, pictures, strict=True):
        assert torch.equal(batch["codes"], codes.encode_images(seen["image"]))
        assert batch["captions"] == seen["captions"]
        assert torch.equal(batch["position"], seen["position"])
        assert torch.equal(batch["index"], seen["index"])
    held_out = list(data.val_dataloader())
    assert sum(len(batch["captions"]) for batch in held_out) == 4


def test_a_context_comes_with_a_codec(pictures, codes, codec):
    made = CodeData(pictures=pictures, codes=codes, codec=codec)
    made.setup("fit")
    sample = made.train.sample(3, 3)
    expected = codec.context(codec.tokenizer.encode([sample["captions"]]))[0]
    assert np.array_equal(sample["context"], expected.float().numpy())


def test_cached_codes_are_read_again_and_damage_is_named(data, codes):
    data.prepare_data()
    recipe = stored_codes(data.pictures.train, codes, mirrored=True)
    arrays = recipe.arrays()
    assert (arrays.shape, arrays.dtype) == ((16,), np.uint16)
    assert recipe.missing_bytes == 0
    (shard,) = recipe.folder.glob("*.tar")
    content = bytearray(shard.read_bytes())
    rows = codes.encode_images(data.pictures.train.images(range(1)))[0].numpy().astype(np.uint16)
    place = bytes(content).index(rows.tobytes())
    content[place : place + 2] = (60000).to_bytes(2, "little")
    shard.write_bytes(content)
    data.setup("fit")  # a set of this size is hashed when it is opened, and what is damaged is computed again
    assert data.train.arrays["codes"].read(0)[0].tolist() == rows.tolist()
    fewer = replace(data.train, levels=[CodeLevel(4, int(rows.max()))])
    with pytest.raises(DataError, match="holds codes that its tokenizer doesn't have"):
        fewer[0]


def test_more_codes_than_16_bits_have_are_refused(data, codes):
    codes.net.levels = (CodeLevel(4, 2**16 + 1),)
    with pytest.raises(UserError, match="has 65537 codes: at most 65536 can be stored"):
        stored_codes(data.pictures.train, codes, mirrored=False)


def test_codes_of_another_tokenizer_lie_in_another_folder(data, codes):
    first = stored_codes(data.pictures.train, codes, mirrored=False)
    net = codes.net
    net.quantizer.codebook.mul_(2)
    second = stored_codes(data.pictures.train, PictureCodes(net), mirrored=False)
    assert first.folder != second.folder
    assert first.folder.parent.name == "codes"
    first.arrays()
    assert (first.folder / ORIGIN).is_file()
