"""Facts about batches of one shape from pictures of many."""

import numpy as np
import pytest

from ldm.data.datamodule import BucketOrder, Buckets

BUCKET = np.array([0, 1, 1, 2, 1, 0, 2, 2, 2, 2, 1])  # of eleven pictures


@pytest.mark.parametrize(("size", "multiple"), [(64, 8), (256, 32), (512, 64), (256, 64)])
def test_shapes_are_multiples_within_the_area_and_the_stretch(size, multiple):
    shapes = Buckets(size=size, multiple=multiple, stretch=2.0).shapes
    assert (size, size) in shapes
    assert {shape[::-1] for shape in shapes} == set(shapes)
    for height, width in shapes:
        assert height % multiple == width % multiple == 0
        assert height * width <= size**2
        assert max(height, width) <= 2 * min(height, width)


def test_pictures_go_to_the_shape_nearest_their_own():
    buckets = Buckets(size=64, multiple=16)
    assert [buckets.shapes[i] for i in buckets.nearest([1.0, 1.02, 2.2, 0.3])] == [
        (64, 64),
        (64, 64),
        (48, 80),
        (80, 48),
    ]


def test_sides_that_are_too_coarse_are_refused():
    with pytest.raises(ValueError, match="multiples of 128"):
        Buckets(size=64, multiple=128)


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_every_batch_lies_in_one_bucket_and_every_picture_comes(batch):
    order = BucketOrder(BUCKET, batch)
    for epoch in range(3):
        numbers = order(5, epoch, order.size)
        assert set(numbers.tolist()) == set(range(11))
        assert len(numbers) == order.size
        assert all(len(set(own)) == 1 for own in BUCKET[numbers].reshape(-1, batch))


def test_the_order_depends_on_seed_and_epoch_alone():
    order, size = BucketOrder(BUCKET, 2), BucketOrder(BUCKET, 2).size
    orders = [tuple(order(seed, epoch, size)) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1]
    assert len(set(orders)) == 3


def test_batches_of_one_repeat_nothing():
    order = BucketOrder(BUCKET, 1)
    assert sorted(order(0, 0, order.size)) == list(range(11))
