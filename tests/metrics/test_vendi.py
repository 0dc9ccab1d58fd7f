import pytest
import torch

from ldm.metrics.diversity import VendiScore
from ldm.metrics.picture_metric import Observed


def vendi(rows, splits=100):
    metric = VendiScore(features="net", dims=rows.shape[1])
    for part in rows.split(splits):
        numbers = torch.arange(len(part))
        metric.update(Observed(features={"net": part}, rows=numbers, captions=numbers), real=False)
    return metric.compute()["vendi_net"].item()


def test_equal_pictures_are_one_and_right_angles_count_all():
    assert vendi(torch.tensor([[1.0, 2, 3]]).expand(9, 3)) == pytest.approx(1)
    assert vendi(torch.eye(5) * torch.arange(1.0, 6)) == pytest.approx(5)


def test_two_pictures_at_an_angle():
    """Cosine c: the eigenvalues of K / 2 are (1 + c) / 2 and (1 - c) / 2."""
    p = torch.tensor([0.9, 0.1], dtype=torch.float64)  # c = 0.8
    assert vendi(torch.tensor([[1.0, 0], [0.8, 0.6]])) == pytest.approx((-(p * p.log()).sum()).exp().item())


@pytest.mark.parametrize("count", [4, 30])
def test_equals_the_eigenvalues_of_all_cosines_in_any_batches(count):
    rows = torch.randn(count, 9, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    unit = torch.nn.functional.normalize(rows, dim=1)
    values = torch.linalg.eigvalsh(unit @ unit.T / count).clamp(min=1e-300)
    expected = (-(values * values.log()).sum()).exp().item()
    assert vendi(rows) == pytest.approx(expected, rel=1e-9)
    assert vendi(rows, splits=3) == pytest.approx(expected, rel=1e-9)


def test_features_of_zeros_are_refused():
    with pytest.raises(ValueError, match="at least one picture whose features are not all 0"):
        vendi(torch.zeros(2, 3))
