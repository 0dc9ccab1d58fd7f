"""Facts about the counter-based generator and the normals that are computed from it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ldm.randomness import philox
from ldm.randomness.noise import SeededNoise

CPU, ONES = torch.device("cpu"), 0xFFFFFFFF
DEVICES = [CPU, *[torch.device("cuda")] * torch.cuda.is_available()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ONES] * 4, [ONES] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_words_are_those_of_random123(counter, key, expected):
    """The known answers of philox4x32-10 in kat_vectors of Random123; alone and among others."""
    words = philox.philox(torch.tensor(counter), torch.tensor(key))
    assert " ".join(f"{word:08x}" for word in words.tolist()) == expected
    several = torch.stack([torch.zeros(4, dtype=torch.int64), torch.tensor(counter)], dim=1)
    assert torch.equal(philox.philox(several, torch.tensor(key)[:, None])[:, 1], words)


def by_hand(key: int, position: int, count: int) -> np.ndarray:
    """The same normals one by one, in float64 from the same words."""
    blocks = -(-count // 4)
    numbers = np.empty((4, blocks))
    for block in range(blocks):
        counter = [block, 0, position & ONES, position >> 32]
        words = philox.philox(torch.tensor(counter), torch.tensor([key & ONES, key >> 32])).tolist()
        for pair in range(2):
            first, second = words[2 * pair], words[2 * pair + 1]
            r = math.sqrt(-2 * math.log(((first & 0x7FFFFFFF) + 0.5) / 2**31)) * (-1) ** (first >> 31)
            angle = math.pi / 2 * ((second + 2**31) % 2**32 - 2**31) / 2**31
            numbers[pair, block], numbers[2 + pair, block] = r * math.cos(angle), r * math.sin(angle)
    return numbers.ravel()[:count]


@pytest.mark.parametrize("position", [0, 3, 2**32 + 1, 2**63 - 1])
def test_normals_are_box_mullers_of_the_words(position):
    key = 0xFEDCBA9876543210
    found = philox.normals([key], torch.tensor([position]), (3, 7), device=CPU)
    assert found.shape == (1, 3, 7)
    np.testing.assert_allclose(found.flatten(), by_hand(key, position, 21), rtol=1e-6, atol=1e-6)


def test_radius_and_sine_are_right_to_a_few_units_in_the_last_place():
    """Over the whole range of both, against float64; 2**-23 is one unit of a number just above 1."""
    u = torch.cat([torch.logspace(-1, 31, 20_001, base=2.0), torch.tensor([0.5, 2.0**31 - 128, 2.0**31])])
    expected = (-2 * (u.double() / 2**31).log()).sqrt()
    found = philox._radius(u.clone()).double()
    assert ((found - expected).abs() <= 3 * 2**-23 * expected).all()
    a = torch.linspace(-1, 1, 20_001)
    expected = (a.double() * math.pi / 2).sin()
    found = (philox._polynomial(philox.SINE, a * a) * a).double()
    assert ((found - expected).abs() <= 3 * 2**-23 * expected.abs()).all()


@pytest.mark.parametrize("device", DEVICES)
def test_bits_are_the_same_in_all_versions_and_on_all_devices(device):
    # pictures of seeds and trainings hang on these numbers
    few = SeededNoise([0, 2**63 - 1], (4,), device=device).generate().cpu()
    assert few.view(torch.int32).tolist() == [
        [1048752942, -1101700752, 1070117644, 1039908260],
        [1060856575, 1032881995, -1076337382, -1096770628],
    ]
    many = philox.normals([1], torch.arange(64), (4, 32, 32), device=device).cpu()
    assert int(many.view(torch.int32).sum()) == -4096555133254


@pytest.fixture(scope="module")
def million():
    """A thousand numbers of each of a thousand positions."""
    return philox.normals([12345], torch.arange(1000), (1000,), device=CPU).double().numpy()


def test_normals_are_normal(million):
    """To four standard errors; the tails as often as they should be."""
    count = million.size
    assert abs(million.mean()) < 4 / count**0.5
    assert abs(million.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs(stats.skew(million, axis=None)) < 4 * (6 / count) ** 0.5
    assert abs(stats.kurtosis(million, axis=None)) < 4 * (24 / count) ** 0.5
    assert stats.kstest(million.ravel(), "norm").pvalue > 1e-3
    for bound in (2, 3, 4):
        expected = count * 2 * stats.norm.sf(bound)
        assert abs((abs(million) > bound).sum() - expected) < 4 * expected**0.5


def test_the_largest_normal_comes_of_the_smallest_word():
    out = torch.empty(4, 1)
    philox._box_muller(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64), out=out)
    assert out.max() == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-6)


def test_numbers_positions_keys_and_steps_are_uncorrelated(million):
    """Largest of so many correlations: five standard errors."""
    several = philox.normals(list(range(30)), torch.zeros(30, dtype=torch.int64), (1000,), device=CPU)
    noise = SeededNoise(range(10), (1000,), device=CPU)
    steps = torch.cat([noise.generate() for _ in range(3)])
    for rows in (million[:, ::25].T, million[:40], several.numpy(), steps.numpy()):
        correlations = np.corrcoef(rows) - np.eye(len(rows))
        assert abs(correlations).max() < 5 / rows.shape[1] ** 0.5


@pytest.mark.parametrize("at_once", [1, 5, 64])
def test_numbers_do_not_depend_on_how_many_are_computed_at_once(monkeypatch, at_once):
    keys, positions = [3, 5, 2**64 - 1], torch.tensor([0, 2**40, 9])
    whole = philox.normals(keys, positions, (2, 13), device=CPU)
    monkeypatch.setitem(philox.AT_ONCE, "cpu", at_once)
    assert torch.equal(philox.normals(keys, positions, (2, 13), device=CPU), whole)
    for number, key in enumerate(keys):
        alone = philox.normals([key], positions[number : number + 1], (2, 13), device=CPU)
        assert torch.equal(alone[0], whole[number])
