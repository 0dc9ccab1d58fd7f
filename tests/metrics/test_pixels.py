import pytest
import torch

from ldm.metrics.features import FeatureExtractor, Pixels, as_pictures

PICTURES = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_pictures_of_the_size_come_back_to_the_bit():
    pixels = Pixels(size=8)
    features = pixels(PICTURES)["pixels"]
    assert isinstance(pixels, FeatureExtractor)
    assert features.shape == (3, pixels.dims["pixels"])
    assert torch.equal(as_pictures(features), PICTURES)


def test_others_are_brought_to_it_in_whole_numbers():
    grey = torch.full((1, 3, 5, 5), 77, dtype=torch.uint8)
    assert torch.equal(as_pictures(Pixels(size=8)(grey)["pixels"]), grey[..., :1, :1].expand(1, 3, 8, 8))
    assert torch.equal(Pixels(size=4)(PICTURES)["pixels"] % 1, torch.zeros(3, 48))


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match="size=0 of the pictures to compare must be at least 1 pixel"):
        Pixels(size=0)
