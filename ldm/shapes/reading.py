"""The exact reader: what a picture of shapes shows, found by fitting the stencils that it was drawn with.

1. The background is a plane of colour, fitted to the picture's border.
2. A pixel that differs from it belongs to the colour whose mixture with the background is nearest.
3. Pixels of one colour that touch are a spot. The stencil that covers it best gives shape, size and place.
4. A picture with a spot that no stencil fits is unreadable, and so is one whose background is no plane.

No network takes part, so nothing can be trained to please it but showing the right shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from ldm.shapes.scene import (
    COLOURS,
    FINE,
    RADII,
    SHAPES,
    UNIT,
    Shape,
    Size,
    Thing,
    check_side,
    placed,
    reach,
    stencils,
)

MOST_THINGS = 8
BORDER = 2 / UNIT  # of the side: no scene reaches so far out
ROUGH = 16.0  # levels: the root mean square that noise and compression leave around a plane
DIFFERENT = 0.42  # a pixel's share of a colour from which on it belongs to a spot
SPECK = 14 / UNIT**2  # of the picture: a smaller spot is an artefact; the smallest shape has 35 / UNIT**2
MISFIT = 0.25  # 1 - the squared correlation of a spot with its stencil, from which on it is none
WASHED = 0.5  # share of a difference of colour that a thin line keeps, at least
WRONG_COLOUR = 60.0  # between a spot and the nearest colour, as `SEEN` weighs levels
STRANGE = 90.0  # levels of change from the background that some stencil must explain
CANDIDATES = 4  # looks that are fitted closely
NAMES = tuple(COLOURS)
# brightness counts more than the two differences of colour, which pictures store coarsely (JPEG, codecs)
SEEN = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], dtype=np.float32)
SEEN *= np.array([[1.7], [0.7], [0.7]], dtype=np.float32)
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
LOOKS: tuple[tuple[Shape, Size], ...] = tuple((shape, size) for shape in SHAPES for size in RADII)
NEIGHBOURS = np.ones((3, 3), dtype=int)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a picture shows."""

    things: tuple[Thing, ...] | None  # the shapes in it; None where it is unreadable
    reason: str = ""  # why it is unreadable


class _Unreadable(Exception):
    """Ends the reading of a picture with a reason."""


def read(picture: UInt8[np.ndarray, "side side 3"]) -> Reading:
    """The shapes in a square picture; what it can't read has a reason instead of an exception.

    Raises UserError where the side is outside what the reader resolves.
    """
    check_side(len(picture))
    try:
        return Reading(things=tuple(_things(picture.transpose(2, 0, 1).astype(np.float32))))
    except _Unreadable as unreadable:
        return Reading(things=None, reason=str(unreadable))


def _things(picture: Float[np.ndarray, "3 s s"]) -> list[Thing]:
    # channels come first in all arrays: numpy adds three planes faster than three neighbours at every pixel
    behind = _background(picture)
    change, colours = _seen(picture - behind), _seen(PALETTE[:, :, None, None] - behind)
    lengths = np.square(colours).sum(axis=1)
    share = (colours * change).sum(axis=1) / lengths
    # |change - used * colour|^2 without its first term |change|^2, in which the colours don't differ
    used = share.clip(0, 1.2)
    nearest = (lengths * used * (used - 2 * share)).argmin(axis=0)
    covered = np.take_along_axis(share, nearest[None], axis=0)[0] > DIFFERENT
    view = _View(change=change, behind=behind, nearest=nearest)
    fits = [fit for spot in _parts(covered, across=1) for fit in _fitted(spot, covered & ~spot, view)]
    # without this, a circle beside a face would be read as a circle alone
    strange = np.square(picture - behind).sum(axis=0) > STRANGE**2
    for fit in fits:
        strange[fit.window(margin=2)] = False
    if strange.sum() > max(4, SPECK * strange.size):
        raise _Unreadable("it shows something that has none of the colours")
    if not fits:
        raise _Unreadable("there is nothing but a background")
    if len(fits) > MOST_THINGS:
        raise _Unreadable(f"there are more than {MOST_THINGS} shapes")
    return [fit.thing() for fit in fits]


def _seen(levels: Float[np.ndarray, "*n 3 s s"]) -> Float[np.ndarray, "*n 3 s s"]:
    """RGB differences as brightness and two differences of colour, weighed by how exactly they are stored."""
    return (SEEN @ levels.reshape(*levels.shape[:-2], -1)).reshape(levels.shape)


def _background(picture: Float[np.ndarray, "3 s s"]) -> Float[np.ndarray, "3 s s"]:
    """The plane of colour through the picture's border; _Unreadable where the border is no plane."""
    edge, plane = _border(len(picture[0]))
    terms, values = plane[:, edge].T, picture[:, edge].T
    near = np.ones(len(terms), dtype=bool)
    for _ in range(3):  # shapes and noise at the border are left out of the next fit
        before, found = near, np.linalg.lstsq(terms[near], values[near], rcond=None)[0]
        off = np.sqrt(((values - terms @ found) ** 2).mean(axis=1))
        near = off < 3 * ROUGH
        if near.mean() < 0.75:
            raise _Unreadable("its border is no even background")
        if (near == before).all():
            break
    if np.sqrt((off[near] ** 2).mean()) > ROUGH:
        raise _Unreadable("its border is no even background")
    return np.tensordot(found.T, plane, axes=1)


@cache
def _border(side: int) -> tuple[Bool[np.ndarray, "s s"], Float[np.ndarray, "3 s s"]]:
    """Which pixels are at the border, and the terms of a plane: 1, column, row, as shares of the side."""
    rows, columns = np.indices((side, side), dtype=np.float32) / side
    edge = np.ones((side, side), dtype=bool)
    width = max(1, round(BORDER * side))
    edge[width:-width, width:-width] = False
    return edge, np.stack([np.ones_like(rows), columns, rows])


def _parts(mask: Bool[np.ndarray, "s s"], *, across: int = 0) -> Iterator[Bool[np.ndarray, "s s"]]:
    """The parts of a mask whose pixels touch, or lie within some pixels `across`, without specks."""
    labels, number = ndimage.label(_grown(mask, across), structure=NEIGHBOURS)
    sizes = np.bincount(labels[mask], minlength=number + 1)
    for label in np.flatnonzero(sizes[1:] >= max(4, SPECK * mask.size)) + 1:
        yield (labels == label) & mask


def _grown(mask: Bool[np.ndarray, "s s"], pixels: int) -> Bool[np.ndarray, "s s"]:
    """A mask and all within so many rows and columns of it; scipy's dilation takes five times as long."""
    for _ in range(pixels):
        taller = mask.copy()
        taller[1:] |= mask[:-1]
        taller[:-1] |= mask[1:]
        mask = taller.copy()
        mask[:, 1:] |= taller[:, :-1]
        mask[:, :-1] |= taller[:, 1:]
    return mask


def _fitted(spot: Bool[np.ndarray, "s s"], others: Bool[np.ndarray, "s s"], view: "_View") -> list["_Fit"]:
    """The shapes that a spot is, by the first division of it whose pieces all are shapes.

    Raises _Unreadable where no stencil fits, or something has none of the colours.
    """
    reason = ""
    for pieces in _divisions(spot, view):
        try:
            return [_shape_of(piece, others | (spot & ~piece), view) for piece in pieces]
        except _Unreadable as unreadable:
            reason = reason or str(unreadable)
    raise _Unreadable(reason)


def _divisions(spot: Bool[np.ndarray, "s s"], view: "_View") -> Iterator[list[Bool[np.ndarray, "s s"]]]:
    """Its parts, all of it where thin lines are broken, the parts of each colour where shapes touch."""
    yield list(_parts(spot))
    yield [spot]
    own = (spot & (view.nearest == colour) for colour in np.unique(view.nearest[spot]))
    yield [part for each in own for part in _parts(each, across=1)]


def _shape_of(piece: Bool[np.ndarray, "s s"], others: Bool[np.ndarray, "s s"], view: "_View") -> "_Fit":
    """The one shape that a piece is; _Unreadable where no stencil fits, or it has none of the colours."""
    rim = _grown(piece, 2) & ~others  # the pixels that a shape covers in part count, too
    best = _best_fit(np.where(rim, view.change[0], 0))
    wrong, colour = view.colour_of(best)
    if best.misfit > MISFIT or wrong > WRONG_COLOUR:
        what = "shapes" if best.misfit > MISFIT else "colours"
        raise _Unreadable(f"what is at column {best.column:.0f}, row {best.row:.0f} has none of the {what}")
    return best._replace(colour=colour)


class _View(NamedTuple):
    """A picture as the reader looks at it."""

    change: Float[np.ndarray, "3 s s"]  # from the background, as `SEEN` weighs it; brightness comes first
    behind: Float[np.ndarray, "3 s s"]  # RGB of the background
    nearest: Int[np.ndarray, "s s"]  # the number of each pixel's colour

    def colour_of(self, fit: "_Fit") -> tuple[float, int]:
        """How far the stencil's colour is from the nearest one in the palette, and the number of that.

        Brightness is compared as it is. Differences of colour may be washed out by half: JPEG and codecs
        store them at half the resolution, and a thin line keeps no more.
        """
        stencil, (rows, columns) = fit.stencil()
        found = (self.change[:, rows, columns] * stencil).sum(axis=(1, 2)) / np.square(stencil).sum()
        row, column = (min(max(int(place), 0), fit.side - 1) for place in (fit.row, fit.column))
        pure = (PALETTE - self.behind[:, row, column]) @ SEEN.T
        washed = (pure[:, 1:] @ found[1:] / np.square(pure[:, 1:]).sum(axis=1)).clip(WASHED, 1.1)
        off = np.square(found[1:] - washed[:, None] * pure[:, 1:]).sum(axis=1) + np.square(
            found[0] - pure[:, 0]
        )
        return float(np.sqrt(off.min())), int(off.argmin())


class _Fit(NamedTuple):
    """A stencil at a place in a picture."""

    misfit: float  # 1 - the squared correlation of the spot with the stencil
    shape: Shape
    size: Size
    row: float  # of its centre, in pixels
    column: float
    side: int  # of the picture, in pixels
    colour: int = -1  # its number in `NAMES`, once it is known

    def thing(self) -> Thing:
        """What was found, in shares of the side."""
        x, y = self.column / self.side, self.row / self.side
        return Thing(shape=self.shape, colour=NAMES[self.colour], size=self.size, x=x, y=y)

    def stencil(self) -> tuple[Float[np.ndarray, "h w"], tuple[slice, slice]]:
        """The part of the stencil that lies in the picture, and its rows and columns there."""
        whole, top, left = placed(self.shape, self.size, self.column, self.row, side=self.side)
        # a slice ends with its array, but a negative start would count from the end
        part = whole[max(0, -top) : max(0, self.side - top), max(0, -left) : max(0, self.side - left)]
        high, wide = part.shape
        top, left = max(0, top), max(0, left)
        return part, (slice(top, top + high), slice(left, left + wide))

    def window(self, *, margin: int = 0) -> tuple[slice, slice]:
        """The rows and columns of the picture that the stencil reaches, and some more."""
        far = reach(self.shape, self.size) * self.side / UNIT + margin
        rows, columns = (
            slice(max(0, round(place - far)), max(0, round(place + far))) for place in (self.row, self.column)
        )
        return rows, columns


def _best_fit(spot: Float[np.ndarray, "s s"]) -> _Fit:
    """The stencil nearest to a spot: each look at its likeliest place, then the best ones around theirs.

    Args:
        spot: change of brightness, 0 outside of the spot and its rim.
    """
    spot = spot * np.sign(spot.sum())
    weight, energy = spot.clip(0), float(np.vdot(spot, spot))
    places = np.arange(len(spot)) + 0.5
    row, column = (float(weight.sum(axis=k) @ places / weight.sum()) for k in (1, 0))

    def fit(look: tuple[Shape, Size], down: int, right: int) -> _Fit:
        """A look where its weight lies on the spot's, moved by some fine steps."""
        lower, further = weight_of(*look, len(spot))
        at = round((row - lower) * FINE + down) / FINE, round((column - further) * FINE + right) / FINE
        stencil, window = (tried := _Fit(1.0, *look, *at, len(spot))).stencil()
        common = max(0.0, float(np.vdot(spot[window], stencil)))
        return tried._replace(misfit=1 - common**2 / (energy * float(np.vdot(stencil, stencil)) + 1e-9))

    # 16 looks at one place each, then the best four around theirs: a third of the work of all nine places
    first = sorted(fit(look, 0, 0) for look in LOOKS)[:CANDIDATES]
    steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
    return min(*first, *(fit((each.shape, each.size), *step) for each in first for step in steps))


@cache
def weight_of(shape: Shape, size: Size, side: int) -> tuple[float, float]:
    """Rows and columns that a shape's centre of weight lies from its centre."""
    stencil = stencils(shape, size, side)[0][0]
    row, column = ndimage.center_of_mass(stencil)
    return row + 0.5 - len(stencil) / 2, column + 0.5 - len(stencil) / 2
