import pytest
import torch

from ldm.metrics.mmap_tables import nearest, unit_rows
from ldm.metrics.picture_metric import Observed
from ldm.metrics.retrieval import PictureRecall


def observed(features, rows):
    return Observed(features={"net": features}, rows=torch.tensor(rows), captions=torch.arange(len(rows)))


def test_nearest_by_angle_not_by_length():
    gallery = torch.tensor([[10.0, 0], [0, 0.1], [1, 1]])
    queries = torch.tensor([[0.0, 7], [3, 2.5]])
    assert nearest(unit_rows(queries), unit_rows(gallery), count=2)[1].tolist() == [[1, 2], [2, 0]]


def test_recall_counts_the_right_picture_only():
    metric = PictureRecall(features="net", ks=(1, 2))
    metric.update(observed(torch.eye(4), [0, 1, 2, 3]), real=True)
    # right at once; second; never
    queries = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.9, 0], [0.9, 0.8, 0.7, 0.0]])
    metric.update(observed(queries, [0, 1, 3]), real=False)
    found = metric.compute()
    assert found["r1_net"] == pytest.approx(1 / 3)
    assert found["r2_net"] == pytest.approx(2 / 3)


def test_real_pictures_may_come_in_any_order():
    metric = PictureRecall(features="net", ks=(1,))
    for row in (2, 0, 1):
        metric.update(observed(torch.eye(3)[[row]], [row]), real=True)
    metric.update(observed(torch.eye(3), [0, 1, 2]), real=False)
    assert metric.compute()["r1_net"] == 1


def test_a_picture_whose_right_one_is_not_in_the_gallery_is_refused():
    metric = PictureRecall(features="net")
    metric.update(observed(torch.eye(3), [0, 1, 2]), real=True)
    metric.update(observed(torch.eye(3)[:1], [7]), real=False)
    with pytest.raises(ValueError, match="no right item in the gallery"):
        metric.compute()
