import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from ldm.metrics.diversity import InceptionScore, inception_scores


def test_a_sure_classifier_that_sees_every_class_scores_their_number():
    logits = 1000 * torch.eye(7).repeat(3, 1)
    assert inception_scores(logits, splits=1).item() == pytest.approx(7)


def test_a_classifier_that_can_never_decide_scores_one():
    found = inception_scores(torch.zeros(20, 5), splits=10)
    assert found.mean().item() == pytest.approx(1)
    assert found.std().item() == pytest.approx(0, abs=1e-12)


def test_half_sure_about_two_classes():
    """p is (3/4, 1/4) or its mirror image: the score is exp of the divergence from one half each."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log().repeat(4, 1)
    p = torch.tensor([0.75, 0.25])
    assert inception_scores(logits, splits=1).item() == pytest.approx((p * (2 * p).log()).sum().exp().item())


@pytest.mark.parametrize(("count", "splits"), [(100, 10), (57, 10), (30, 3)])
def test_equals_torch_fidelity(count, splits):
    logits = 3 * torch.randn(count, 12, generator=torch.Generator().manual_seed(count))
    found, theirs = inception_scores(logits, splits=splits), isc_features_to_metric(logits, splits)
    assert found.mean().item() == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert found.std(correction=0).item() == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_only_inception_has_the_plain_name(feed):
    logits = torch.randn(40, 6)
    metric = InceptionScore(features="net")
    found = feed(metric, logits, logits)
    assert set(found) == {"is_mean_net", "is_sd_net"}


def test_fewer_pictures_than_parts_are_refused(feed):
    with pytest.raises(ValueError, match="needs at least 10 generated pictures, got 9: measure more"):
        feed(InceptionScore(features="net"), torch.zeros(9, 4), torch.zeros(9, 4))
