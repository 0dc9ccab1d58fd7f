"""Random numbers as a function of key, position and place: Philox4x32-10 (Salmon et al. 2011).

A number needs none of those before it, so a sample's noise depends neither on its batch nor on where a run
was resumed. Words are computed with 64-bit integers. Normals are computed from them with operations that
IEEE 754 rounds in one way only (+, *, sqrt, conversions), each a torch call of its own, so that no compiler
contracts a product and a sum, and no device's own log, sin or cos enters: all devices give the same bits.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm import send

ROUNDS = 10
AT_ONCE = {"cpu": 2**14}  # counters whose words stay in a core's cache; elsewhere memory is the limit
AT_MOST = 2**22

# Constants as tensors: torch takes twice as long to call with a Python number.
MULTIPLIERS = torch.tensor([0xD2511F53, 0xCD9E8D57])
WEYL = torch.tensor([0x9E3779B9, 0xBB67AE85])
WORD = 0xFFFFFFFF
SIGN, MAGNITUDE = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)
FRACTION, FRACTION_BITS = torch.tensor([0x7FFFFF, 23], dtype=torch.int32)  # of a float32
SQRT_HALF = torch.tensor(0x3F3504F3, dtype=torch.int32)  # bits of sqrt(1/2) in float32
SQRT_HALF_31 = SQRT_HALF + (31 << 23)  # bits of sqrt(1/2) 2**31
HALF, ONE, UNIT, LN_2 = torch.tensor([0.5, 1.0, 2.0**-31, -2 * math.log(2)])
LOG = torch.tensor(  # -2 ln(1 + x) / x for x in [sqrt(1/2) - 1, sqrt(2) - 1], from x**9 down, to 4e-9
    [
        *(0.15242225342263216, -0.25809319631663513, 0.26486924778992804, -0.28363670438769834),
        *(0.33218025414861124, -0.40003936992993994, 0.5000317311670803, -0.6666665198720725),
        *(0.9999997657940062, -1.9999999999181093),
    ]
)
SINE = torch.tensor(  # sin(a pi/2) / a for a in [0, 1], from a**8 down by squares, to 5e-9
    [
        *(0.00015148513070108662, -0.004673766612342827, 0.07968967894776272, -0.6459637105998229),
        1.5707963184476954,
    ]
)


def philox(counter: Int64[Tensor, "4 *n"], key: Int64[Tensor, "2 *n"]) -> Int64[Tensor, "4 *n"]:
    """Ten rounds over 32-bit words held in int64; the dimensions of a key may be 1."""
    x, y = counter[0::2].contiguous(), counter[1::2].contiguous()
    words = torch.stack(_rounds(x, y, _schedule(key)), dim=1)
    return words.flatten(0, 1) & WORD


def normals(
    keys: Sequence[int], positions: Int64[Tensor, " b"], shape: Sequence[int], *, device: torch.device
) -> Float[Tensor, "b *shape"]:
    """Standard normal numbers of each position: float32, at most 6.67 away from 0; see `numbers`."""
    return numbers(keys, positions, shape, device=device, finish=_box_muller)


def numbers(
    keys: Sequence[int],
    positions: Int64[Tensor, " b"],
    shape: Sequence[int],
    *,
    device: torch.device,
    finish: Callable[..., None],
) -> Float[Tensor, "b *shape"]:
    """Random numbers of each position: float32.

    Args:
        keys: 64-bit; one for all positions, or one for each.
        positions: 0 to 2**63 - 1.
        shape: of the numbers of one position.
        finish: what makes four numbers, `out`, of words 0 and 2 and of words 1 and 3, see `_rounds`.
    """
    count = math.prod(shape)
    blocks = -(-count // 4)
    out = torch.empty(len(positions), 4, blocks, device=device)
    signed = [key - 2**64 * (key >> 63) for key in keys]  # torch has no arithmetic of uint64
    schedule = send(_schedule(_halves(torch.tensor(signed))), device)
    places = torch.arange(blocks, device=device)
    halves = send(_halves(positions), device)
    at_once = AT_ONCE.get(device.type, AT_MOST)
    rows = max(1, at_once // blocks)
    for top in range(0, len(positions), rows):
        own = schedule if len(keys) == 1 else schedule[:, :, top : top + rows]
        low, high = halves[:, top : top + rows]
        for left in range(0, blocks, at_once):
            place = places[left : left + at_once].expand(len(low), -1)
            x = torch.stack([place, low.expand_as(place)])
            y = torch.stack([torch.zeros_like(place), high.expand_as(place)])
            part = out[top : top + rows, :, left : left + at_once]
            finish(*_rounds(x, y, own), out=part.transpose(0, 1))
    return out.flatten(1)[:, :count].reshape(len(positions), *shape)


def _halves(numbers: Int64[Tensor, " b"]) -> Int64[Tensor, "2 b 1"]:
    """Low and high 32 bits."""
    return torch.stack([numbers & WORD, (numbers >> 32) & WORD])[:, :, None]


def _schedule(key: Int64[Tensor, "2 *n"]) -> Int64[Tensor, "10 2 *n"]:
    """The keys of all rounds, each in the order in which `_rounds` holds its rows."""
    steps = (WEYL * torch.arange(ROUNDS)[:, None]).view(ROUNDS, 2, *[1] * (key.ndim - 1))
    keys = (key + steps) & WORD
    keys[0::2] = keys[0::2].flip(1)
    return keys


def _rounds(
    x: Int64[Tensor, "2 *n"], y: Int64[Tensor, "2 *n"], schedule: Int64[Tensor, "10 2 *_"]
) -> tuple[Int64[Tensor, "2 *n"], Int64[Tensor, "2 *n"]]:
    """Words 0 and 2, and words 1 and 3, whose upper 32 bits are anything; both arguments are overwritten.

    A row keeps its place while the algorithm swaps it at every round: then nothing is copied.
    """
    high = torch.empty_like(x)
    (x0, x1), (high0, high1) = x, high
    earlier, products = (y, *y), (spare := torch.empty_like(y), *spare)
    factors = send(MULTIPLIERS, x.device).view(2, *[1] * (x.ndim - 1))
    factors, others = factors, factors.flip(0)
    for key in schedule:
        torch.mul(x, factors, out=products[0])
        torch.bitwise_right_shift(products[0], 32, out=high)
        torch.bitwise_xor(high0, earlier[2], out=x0)
        torch.bitwise_xor(high1, earlier[1], out=x1)
        x.bitwise_xor_(key).bitwise_and_(WORD)
        products, earlier, factors, others = earlier, products, others, factors
    return x, earlier[0]


def _box_muller(
    radius: Int64[Tensor, "2 *n"], angle: Int64[Tensor, "2 *n"], *, out: Float[Tensor, "4 *n"]
) -> None:
    """Two normals from each pair of words: r cos(t pi/2) and r sin(t pi/2), with t in [-1, 1).

    The lower 31 bits of the first word make the size of r, its upper one its sign, the second word makes t.
    """
    word = radius.to(torch.int32)
    r = _radius((word & MAGNITUDE).float().add_(HALF))  # a half above: the logarithm of 0 is infinite
    r.view(torch.int32).bitwise_or_(word.bitwise_and_(SIGN))
    # cos(t pi/2) is never negative: the sign of r gives the other half of the circle
    t = angle.to(torch.int32).float().mul_(UNIT)
    sides = torch.stack([ONE - t.abs(), t])
    sines = _polynomial(SINE, sides * sides).mul_(sides)
    torch.mul(sines[0], r, out=out[:2])
    torch.mul(sines[1], r, out=out[2:])


def _radius(u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """sqrt(-2 ln(u / 2**31)); `u` is overwritten."""
    bits = u.view(torch.int32).sub_(SQRT_HALF_31)
    whole = (bits >> FRACTION_BITS).float().mul_(LN_2)
    x = bits.bitwise_and_(FRACTION).add_(SQRT_HALF).view(torch.float32).sub_(ONE)
    return _polynomial(LOG, x).mul_(x).add_(whole).sqrt_()


def _polynomial(coefficients: Float[Tensor, " k"], x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """By Horner's rule, from the highest power down."""
    first, *others, last = coefficients
    total = x * first
    for coefficient in others:
        total.add_(coefficient).mul_(x)
    return total.add_(last)
