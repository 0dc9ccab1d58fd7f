"""Facts about the random changes of pictures."""

from functools import partial

import pytest
import torch

from ldm.data.augment import shifts, turns_and_colours

AUGMENTS = [turns_and_colours, shifts, partial(shifts, reach=1)]


def pictures(count: int) -> torch.Tensor:
    """So many times the same picture, no two of whose values are equal."""
    return torch.arange(3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8).expand(count, -1, -1, -1)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_change_depends_on_seed_and_position_not_on_the_batch(augment):
    together = augment(pictures(6), seed=2, positions=torch.arange(10, 16))
    alone = augment(pictures(1), seed=2, positions=torch.tensor([13]))
    assert torch.equal(together[3:4], alone)
    assert not torch.equal(together, augment(pictures(6), seed=3, positions=torch.arange(10, 16)))


def test_there_are_48_turns_and_colours_and_each_keeps_all_values():
    changed = turns_and_colours(pictures(600), seed=0, positions=torch.arange(600))
    assert len({tuple(picture.flatten().tolist()) for picture in changed}) == 48
    assert torch.equal(changed.flatten(1).sort(dim=1).values, pictures(600).flatten(1))


def test_shifts_stay_in_reach_and_repeat_the_edge():
    changed = shifts(pictures(200), seed=0, positions=torch.arange(200), reach=1)
    assert len({tuple(picture.flatten().tolist()) for picture in changed}) == 9
    padded = torch.nn.functional.pad(pictures(1).float(), (1, 1, 1, 1), mode="replicate").byte()
    windows = [padded[0, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    assert all(any(torch.equal(picture, window) for window in windows) for picture in changed)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_what_comes_in_is_left_as_it_was(augment):
    images = pictures(4).clone()
    augment(images, seed=0, positions=torch.arange(4))
    assert torch.equal(images, pictures(4))
