"""Measures that look at all pairs work in blocks: the result is that of the whole matrix."""

import pytest
import torch
from torch.nn import functional as F

from ldm.metrics.distances import biased_mmd, polynomial
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, Table, blocks, nearest, unit_rows
from ldm.metrics.neighbours import balls_around

COUNT = 2 * ROWS_AT_ONCE + 52  # two whole blocks and a part of one


def rows_of(count, seed):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def table():
    """Rows in uneven parts and in a random order, with the tensor that they amount to."""
    rows = rows_of(COUNT, 0)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    return Table(parts=rows.split([1, 700, COUNT - 701]), order=order), rows[order]


def test_a_table_reads_like_its_rows_put_together_in_order(table):
    found, rows = table
    assert len(found) == COUNT
    assert torch.equal(torch.cat(list(blocks(found))), rows.double())
    assert torch.equal(torch.cat(list(blocks(rows))), rows.double())
    assert max(map(len, blocks(found))) == ROWS_AT_ONCE
    torch.testing.assert_close(torch.cat(list(blocks(unit_rows(found)))), F.normalize(rows.double(), dim=1))


def test_nearest_neighbours_are_those_of_the_whole_matrix(table):
    found, rows = table
    points = rows_of(1100, 2)
    expected = torch.cdist(points.double(), rows.double()).topk(4, dim=1, largest=False)
    distances, numbers = nearest(points, found, count=4)
    torch.testing.assert_close(distances, expected.values)
    assert torch.equal(numbers, expected.indices)


def test_balls_are_those_of_the_whole_matrix(table):
    found, rows = table
    points, radius = rows_of(1100, 2), torch.rand(COUNT, generator=torch.Generator().manual_seed(3)).double()
    expected = (torch.cdist(points.double(), rows.double()) <= radius).sum(1)
    assert torch.equal(balls_around(points, found, radius), expected)


def test_discrepancies_are_those_of_the_whole_matrix(table):
    found, rows = table
    rows, points = rows.double(), rows_of(1100, 2).double()
    kernels = [polynomial(*pair).mean() for pair in ((rows, rows), (points, points), (rows, points))]
    expected = kernels[0] + kernels[1] - 2 * kernels[2]
    torch.testing.assert_close(biased_mmd(found, points, kernel=polynomial), expected)
