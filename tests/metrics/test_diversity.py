import pytest
import torch

from ldm.metrics.diversity import (
    CaptionDiversity,
    PerceptualDiversity,
    mean_pairwise_distance,
    within_captions,
)
from ldm.metrics.features import Pixels
from ldm.metrics.picture_metric import Observed


def test_equal_pictures_have_no_diversity():
    features = torch.randn(1, 8).expand(5, 8)
    assert mean_pairwise_distance(features) == pytest.approx(0, abs=1e-12)


def test_orthogonal_and_opposite_pictures():
    assert mean_pairwise_distance(torch.eye(4)) == pytest.approx(1)
    assert mean_pairwise_distance(torch.tensor([[1.0, 0], [-3.0, 0]])) == pytest.approx(2)


def test_closed_form_equals_the_mean_over_pairs():
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = torch.combinations(torch.arange(6))
    cosines = torch.cosine_similarity(features[pairs[:, 0]], features[pairs[:, 1]])
    torch.testing.assert_close(mean_pairwise_distance(features), (1 - cosines).mean())


def test_captions_count_equally_whatever_the_order_of_their_pictures():
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    captions = torch.tensor([3, 8, 3, 8])
    assert within_captions(features, captions, distance=mean_pairwise_distance).mean() == pytest.approx(0.5)


def test_a_caption_with_one_picture_is_refused():
    with pytest.raises(ValueError, match="at least 2 pictures a caption, caption 1 has one"):
        within_captions(torch.eye(3), torch.tensor([0, 0, 1]), distance=mean_pairwise_distance)


def test_metric_over_batches_with_the_real_pictures_as_measure():
    metric = CaptionDiversity(features="net", dims=4)
    numbers = torch.arange(4)
    metric.update(Observed(features={"net": torch.eye(4)}, rows=numbers, captions=-numbers), real=True)
    for start in (0, 2):
        same = torch.eye(4)[[start, start]]
        metric.update(
            Observed(features={"net": same}, rows=numbers[:2], captions=torch.tensor([start, start])),
            real=False,
        )
    found = metric.compute()
    assert found["diversity_net"] == pytest.approx(0, abs=1e-12)
    assert found["diversity_net_between_real"] == pytest.approx(1)


class Gap:
    """Largest difference of two pictures."""

    name = "gap"

    def __call__(self, ours, theirs):
        return (ours - theirs).abs().amax(dim=(1, 2, 3))


def test_perceptual_diversity_takes_every_pair_of_a_caption_once_and_no_real_picture():
    """Greys 0, 51 and 255 for one caption, 0 and 255 for the other: pairs are 0.4, 2 and 1.6 apart, and 2."""
    greys = torch.tensor([0, 255, 51, 255, 0], dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    captions, numbers = torch.tensor([5, 5, 5, 9, 9]), torch.arange(5)
    metric = PerceptualDiversity(distance=Gap())
    metric.update(Observed({}, rows=numbers, captions=captions), real=True)
    for part in (slice(3, 4), slice(0, 3), slice(4, 5)):
        pixels = Pixels(size=8)(greys[part])
        metric.update(Observed(pixels, rows=numbers[part], captions=captions[part]), real=False)
    expected = ((0.4 + 2 + 1.6) / 3 + 2) / 2
    assert metric.compute() == {"diversity_gap": pytest.approx(expected, rel=1e-6)}
    metric.reset()
    metric.update(Observed(pixels, rows=numbers[4:], captions=captions[4:]), real=False)
    with pytest.raises(ValueError, match="caption 9 has one"):
        metric.compute()
