import pytest
import torch

from ldm.metrics.features import BothWays, Pixels
from ldm.metrics.neighbours import CopiedShare, nearest_ratio
from ldm.metrics.networks import EfficientNetLite0
from ldm.metrics.picture_metric import Observed

SIZE = 8
NAME = "pixels_both_ways"
LOOK = BothWays(of=Pixels(size=SIZE))


def pictures(count, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def noisy(images, *, seed=9):
    """The pictures with noise of about a tenth of the distance between two of them."""
    noise = torch.randint(-12, 13, images.shape, generator=torch.Generator().manual_seed(seed))
    return (images.long() + noise).clamp(0, 255).to(torch.uint8)


def rows(images):
    return LOOK(images)[NAME]


def measured(metric, generated, real):
    for images, is_real in ((real, True), (generated, False)):
        numbers = torch.arange(len(images))
        metric.update(Observed({NAME: rows(images)}, rows=numbers, captions=numbers), real=is_real)
    return {name: value.item() for name, value in metric.compute().items()}


def test_planted_copies_are_found_also_mirrored_ones():
    real, fresh = pictures(20), pictures(6, seed=1)
    made = torch.cat([noisy(real[3:4]), noisy(real[[7, 11]].flip(-1)), fresh, real[5:6]])
    found = nearest_ratio(rows(made), rows(real))
    assert found.real[[0, 1, 2, 9]].tolist() == [3, 7, 11, 5]
    assert (found.ratio < 1 / 3).tolist() == [True] * 3 + [False] * 6 + [True]
    assert found.mirrored[:3].tolist() == [False, True, True]
    assert found.ratio[9] == 0
    numbers = measured(CopiedShare(features=NAME), made, real)
    assert numbers["copied_pixels"] == 0.4
    assert numbers["copied_mirrored_pixels"] == 0.2
    assert numbers["copy_ratio_pixels"] == pytest.approx(found.ratio.quantile(0.5).item())


def test_the_second_picture_is_another_one_and_not_the_mirror_image_of_the_first():
    """A symmetric picture is as near to a copy mirrored as not: both ways name one and the same picture."""
    real = pictures(5)
    real[2] = real[2].flip(-1).maximum(real[2])  # symmetric
    assert torch.equal(real[2], real[2].flip(-1))
    found = nearest_ratio(rows(noisy(real[2:3])), rows(real))
    assert found.real.item() == 2
    assert found.ratio.item() < 1 / 3


def test_a_twin_hides_a_copy_unless_it_is_exact():
    real = pictures(6)
    twins = torch.cat([real, real[4:5]])
    found = nearest_ratio(rows(torch.cat([noisy(real[4:5]), real[4:5]])), rows(twins))
    assert found.ratio.tolist() == [pytest.approx(1, abs=1e-9), 0]


def test_only_pictures_of_the_training_set_are_copied():
    real = pictures(10)
    metric = CopiedShare(features=NAME, split="train")
    metric.seen = torch.arange(2, 10)
    assert measured(metric, noisy(real[:4]), real)["copied_pixels"] == 0.5


def test_features_of_a_network_are_searched_both_ways():
    look = BothWays(of=EfficientNetLite0(size=32))
    made = torch.nn.functional.interpolate(pictures(4).float(), 32).to(torch.uint8)
    ((name, found),) = look(made).items()
    assert (name, look.dims) == ("efficientnet_lite0_both_ways", {name: 2560})
    assert torch.allclose(found[:, 1280:], look.of(made.flip(-1))["efficientnet_lite0"], atol=1e-5)
    assert torch.allclose(found[:, :1280], look.of(made)["efficientnet_lite0"], atol=1e-5)
    assert look.identity.name == "efficientnet_lite0_both_ways"


def test_refusals():
    with pytest.raises(ValueError, match="needs at least 2 real pictures, got 1"):
        measured(CopiedShare(features=NAME), pictures(3), pictures(1))
    alone = CopiedShare(features=NAME, split="train")
    alone.seen = torch.tensor([4])  # with no second one to compare with, every ratio would be 0
    with pytest.raises(ValueError, match="at least 2 real pictures of split 'train', got 1"):
        measured(alone, pictures(3), pictures(6, seed=1))
    with pytest.raises(ValueError, match=r"limit=1\.0 of the ratio of two distances must lie"):
        CopiedShare(features=NAME, limit=1.0)
    with pytest.raises(ValueError, match="features='pixels' say nothing of mirrored pictures"):
        CopiedShare(features="pixels")
