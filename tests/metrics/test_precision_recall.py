import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from ldm.metrics.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)

GRID = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))


def test_equal_sets_are_precise_and_complete():
    assert precision_recall(GRID, GRID) == {"precision": 1, "recall": 1}
    assert density_coverage(GRID, GRID)["coverage"] == 1


def test_far_away_sets_are_neither():
    assert precision_recall(GRID + 100, GRID) == {"precision": 0, "recall": 0}
    assert density_coverage(GRID + 100, GRID) == {"density": 0, "coverage": 0}


def test_half_of_the_grid_is_precise_and_not_complete():
    """Columns 0 to 4 of 10: their balls reach 1 far, and so to column 5."""
    half = GRID[GRID[:, 0] < 5] + 1e-3  # no two distances tie
    found = precision_recall(half, GRID)
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx(0.6)


def test_every_second_picture_far_away_halves_precision():
    generated = GRID.clone()
    generated[::2] += 1000
    assert precision_recall(generated, GRID)["precision"] == 0.5


def test_density_counts_balls_and_coverage_counts_them_once():
    """Real: 0..5 on a line, k = 1, so each ball reaches 1. Ten copies of 2 lie in the balls of 1, 2 and 3."""
    real = torch.arange(6.0)[:, None]
    found = density_coverage(torch.full((10, 1), 2.0), real, neighbours=1)
    assert found["density"] == 3
    assert found["coverage"] == 0.5


def test_an_outlier_among_generated_pictures_makes_recall_grow_but_not_coverage():
    real = torch.arange(6.0)[:, None]
    generated = torch.tensor([[-1000.0], [-999.0], [1000.0]])
    assert precision_recall(generated, real, neighbours=1)["recall"] == 1
    assert density_coverage(generated, real, neighbours=1)["coverage"] == 0


def test_equals_torch_fidelity():
    generator = torch.Generator().manual_seed(0)
    generated, real = torch.randn(80, 6, generator=generator), 1.3 * torch.randn(70, 6, generator=generator)
    precision, recall = calculate_precision_recall_full(generated, real)
    found = precision_recall(generated, real)
    assert found["precision"].item() == pytest.approx(precision, rel=1e-6)
    assert found["recall"].item() == pytest.approx(recall, rel=1e-6)


def test_names(feed):
    assert set(feed(PrecisionRecall(features="net"), GRID, GRID)) == {"precision_net", "recall_net"}
    assert set(feed(DensityCoverage(features="net"), GRID, GRID)) == {"density_net", "coverage_net"}


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="need more than 3 pictures, got 3"):
        precision_recall(GRID, GRID[:3])
