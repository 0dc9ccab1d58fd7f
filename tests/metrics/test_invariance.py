"""No measure depends on batch size, on the order of pictures, or on how ranks share them out."""

from functools import partial

import pytest
import torch

from ldm.metrics.distances import Cmmd, FrechetRatio, KernelDistance, Mind
from ldm.metrics.diversity import CaptionDiversity, InceptionScore, VendiScore
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.mmap_tables import store_tables
from ldm.metrics.neighbours import ClippedDensityCoverage, DensityCoverage, Memorisation, PrecisionRecall
from ldm.metrics.picture_metric import Observed
from ldm.metrics.retrieval import PictureRecall

DIMS = 6
REAL = torch.randn(50, DIMS, generator=torch.Generator().manual_seed(0))
MADE = 1.2 * torch.randn(40, DIMS, generator=torch.Generator().manual_seed(1))
METRICS = [
    partial(FrechetDistance, dims=DIMS),
    partial(CaptionDiversity, dims=DIMS),
    partial(VendiScore, dims=DIMS),
    partial(KernelDistance, subsets=7, subset_size=20),
    partial(InceptionScore, splits=4),
    PrecisionRecall,
    DensityCoverage,
    Cmmd,
    partial(Memorisation, quantile=0.3),
    PictureRecall,
    Mind,
    FrechetRatio,
    ClippedDensityCoverage,
]


def metric_name(make):
    return getattr(make, "func", make).__name__


def feed(metric, rows, *, real, splits):
    for batch in rows.split(splits):
        features = {"net": (REAL if real else MADE)[batch]}
        metric.update(Observed(features, rows=batch, captions=batch // 4), real=real)


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name].double(), atol=1e-9, rtol=0)


@pytest.fixture
def whole():
    def measure(make):
        metric = make(features="net")
        feed(metric, torch.arange(50), real=True, splits=50)
        feed(metric, torch.arange(40), real=False, splits=40)
        return metric.compute()

    return measure


@pytest.mark.parametrize("make", METRICS, ids=metric_name)
def test_batches_and_order_change_nothing(make, whole):
    metric = make(features="net")
    generator = torch.Generator().manual_seed(2)
    feed(metric, torch.randperm(40, generator=generator), real=False, splits=3)
    feed(metric, torch.randperm(50, generator=generator), real=True, splits=7)
    equal(metric.compute(), whole(make))


@pytest.mark.parametrize("make", METRICS, ids=metric_name)
def test_ranks_change_nothing(make, whole):
    """Each rank takes every third picture; their states are then brought together as torchmetrics does."""
    ranks = [make(features="net") for _ in range(3)]
    for rank, metric in enumerate(ranks):
        feed(metric, torch.arange(rank, 50, 3), real=True, splits=5)
        feed(metric, torch.arange(rank, 40, 3), real=False, splits=4)
    for other in ranks[1:]:
        ranks[0].merge_state(other)
    for name, default in ranks[0]._defaults.items():
        if isinstance(default, list) and getattr(ranks[0], name):  # ranks send lists as one tensor
            setattr(ranks[0], name, torch.cat(getattr(ranks[0], name)))
    equal(ranks[0].compute(), whole(make))


@pytest.mark.parametrize("make", METRICS, ids=metric_name)
def test_features_that_lie_in_files_change_no_bit(make, whole):
    metric = make(features="net")
    for side, real in ((REAL, True), (MADE, False)):
        table = store_tables({"net": part} for part in side.split(7))
        rows = torch.arange(len(side))
        metric.update(Observed(table, rows=rows, captions=rows // 4), real=real)
    assert metric.compute() == whole(make)


@pytest.mark.parametrize("make", METRICS, ids=metric_name)
def test_features_that_are_not_finite_are_refused_in_a_sentence(make):
    batch = Observed(
        {"net": torch.full((2, DIMS), torch.nan)}, rows=torch.arange(2), captions=torch.arange(2)
    )
    with pytest.raises(ValueError, match="features 'net' hold NaN or infinity"):
        make(features="net").update(batch, real=False)
