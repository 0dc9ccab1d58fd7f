"""The exact reader: what a picture of shapes shows, explained by the stencils that it was drawn with.

1. The background is a plane of colour, fitted to the picture's border.
2. A pixel that differs from it belongs to the colour whose mixture with the background is nearest.
3. Pixels that touch are a spot. The stencil that explains it best, as sharp as drawn or softened as a codec
   softens, gives shape, size and place; least squares give its colour.
4. A picture whose shapes leave more than a speck unexplained, or whose background is no plane, is unreadable.

No network takes part, so nothing can be trained to please it but showing the right shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy import ndimage

from ldm.shapes.scene import COLOURS, FINE, RADII, SHAPES, UNIT, Shape, Size, Thing, check_side, stencils

MOST_THINGS = 8
BORDER = 2 / UNIT  # of the side: no scene reaches so far out
ROUGH = 16.0  # levels: the root mean square that noise and compression leave around a plane
DIFFERENT = 0.36  # a pixel's share of a colour from which on it belongs to a spot
PURE = 0.7  # and from which on it votes for that colour where shapes of two touch
SPECK = 14 / UNIT**2  # of the picture: a smaller spot is an artefact; the smallest shape has 35 / UNIT**2
MISFIT = 0.25  # 1 - the squared correlation of a spot with its stencil, from which on it is none
GOOD = 0.1  # a misfit that ends the search for a better division of a spot
BLURS = (0.0, 0.5, 0.7, 0.9)  # pixels: standard deviations of the softness that a stencil is tried with
MARGIN = 2  # pixels that a soft stencil is wider on each side
FADING = 0.6  # what brightness counts in a shape's colour: codecs change that of thin lines
THICK = 1.3  # contrast that a shape with too thick lines may seem to have
WASHED = (0.8, 1.2)  # shares of a shape's difference of colour that a codec may leave
WRONG_COLOUR = 32.0  # between a spot and the nearest colour, as `SEEN` weighs levels
FAINT = 44.0  # change from the background that may stay unexplained: less than half of yellow on white
DEFORMED, MIXED = 0.5, 0.33  # the same around and inside of a shape, as shares of its contrast
INNER = 0.9  # a stencil's share of a pixel that lies inside
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
    check_side(side := len(picture))
    if (fold := side // UNIT) > 1:  # all there is to see is seen at 64 to 127 pixels
        picture = np.asarray(Image.fromarray(picture).resize((round(side / fold),) * 2, Image.Resampling.BOX))
    try:
        return Reading(things=tuple(_things(picture.transpose(2, 0, 1).astype(np.float32))))
    except _Unreadable as unreadable:
        return Reading(things=None, reason=str(unreadable))


def _things(picture: Float[np.ndarray, "3 s s"]) -> list[Thing]:
    # channels come first in all arrays: numpy adds three planes faster than three neighbours at every pixel
    view = _View.of(picture)
    fits = [fit for spot in _parts(view.covered, across=2) for fit in _fitted(spot, view)]
    for lump in _parts(view.unexplained(fits)):
        row, column = np.argwhere(lump).mean(axis=0)
        raise _Unreadable(f"what is at column {column:.0f}, row {row:.0f} is no shape in one of the colours")
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
    """A mask and all within so many rows and columns of it; scipy's dilation takes twice as long."""
    return ndimage.maximum_filter(mask, 2 * pixels + 1)


def _fitted(spot: Bool[np.ndarray, "s s"], view: "_View") -> list["_Fit"]:
    """The shapes of its first division into pieces that fit well, else of the one that fits best, if any."""
    best, least = list[_Fit](), MISFIT
    for pieces in _divisions(spot, view):
        fits = [_shape_of(piece, view) for piece in pieces]
        if pieces and (worst := max(fit.misfit for fit in fits)) < least:
            best, least = fits, worst
        if least < GOOD:
            break
    return best


def _divisions(spot: Bool[np.ndarray, "s s"], view: "_View") -> Iterator[list[Bool[np.ndarray, "s s"]]]:
    """Its parts, fewer of them where thin lines are broken, the parts of each colour where shapes touch."""
    for across in (0, 1, 2):
        yield list(_parts(spot, across=across))
    pure = view.nearest[spot & (view.share > PURE)]
    colours = np.flatnonzero(np.bincount(pure, minlength=len(NAMES)) >= SPECK * spot.size)
    if len(colours) > 1:
        nearest = colours[view.misses[colours].argmin(axis=0)]
        yield [part for colour in colours for part in _parts(spot & (nearest == colour), across=1)]


def _shape_of(piece: Bool[np.ndarray, "s s"], view: "_View") -> "_Fit":
    """The shape that a piece resembles most; with a misfit of 1 where it has none of the colours."""
    rim = _grown(piece, 2) & ~(view.covered & ~piece)  # the pixels that a shape covers in part count, too
    mean = view.change[:, piece].mean(axis=1)
    best = _best_fit(np.where(rim, np.tensordot(mean / (mean @ mean + 1), view.change, axes=1), 0))
    wrong, coloured = view.coloured(best)
    return coloured._replace(misfit=1.0) if wrong > WRONG_COLOUR else coloured


class _View(NamedTuple):
    """A picture as the reader looks at it."""

    change: Float[np.ndarray, "3 s s"]  # from the background, as `SEEN` weighs it; brightness comes first
    colours: Float[np.ndarray, "8 3 s s"]  # what the change would be if all were of one colour
    misses: Float[np.ndarray, "8 s s"]  # of a mixture with each colour: squared distance of change
    nearest: Int[np.ndarray, "s s"]  # the number of each pixel's colour
    share: Float[np.ndarray, "s s"]  # of that colour
    covered: Bool[np.ndarray, "s s"]  # where there is something before the background

    @classmethod
    def of(cls, picture: Float[np.ndarray, "3 s s"]) -> "_View":
        """Looks at a picture (RGB); _Unreadable where its border is no plane."""
        behind = _background(picture)
        change, colours = _seen(picture - behind), _seen(PALETTE[:, :, None, None] - behind)
        lengths = np.square(colours).sum(axis=1) + 1  # 1: the background may have one of the colours
        share = (colours * change).sum(axis=1) / lengths
        # |change - used * colour|^2 without its first term |change|^2, in which the colours don't differ
        used = share.clip(0, 1.2)
        misses = lengths * used * (used - 2 * share)
        nearest = misses.argmin(axis=0)
        share = np.take_along_axis(share, nearest[None], axis=0)[0]
        return cls(change, colours, misses, nearest, share, share > DIFFERENT)

    def coloured(self, fit: "_Fit") -> tuple[float, "_Fit"]:
        """How far the colour that a stencil has here is from the nearest one, and the fit with that colour.

        Differences of colour may be softer than brightness, and washed out: JPEG halves their resolution.
        """
        levels = fit.levels(self.change)[0]
        soft = (fit._replace(blur=blur).levels(self.change) for blur in BLURS)
        levels[1:] = max(soft, key=lambda found: np.square(found[0][1:]).sum() * found[1])[0][1:]
        row, column = (min(max(place // FINE, 0), fit.side - 1) for place in (fit.row, fit.column))
        pure = self.colours[:, :, row, column]
        found = levels / (pure @ levels / (np.square(pure).sum(axis=1) + 1)).clip(1, THICK)[:, None]
        washed = (pure * found)[:, 1:].sum(axis=1) / (np.square(pure[:, 1:]).sum(axis=1) + 1)
        off = np.square(found - washed.clip(*WASHED)[:, None] * pure)[:, 1:].sum(axis=1)
        off += np.square(FADING * (found - pure)[:, 0])
        best = int(off.argmin())
        return float(np.sqrt(off[best])), fit._replace(colour=best, contrast=levels)

    def unexplained(self, fits: list["_Fit"]) -> Bool[np.ndarray, "s s"]:
        """Where these shapes don't explain the picture, averaged over 3x3 pixels."""
        left, allowed = self.change.copy(), np.full_like(self.share, FAINT)
        for fit in fits:
            stencil, (rows, columns) = fit.stencil()
            left[:, rows, columns] -= fit.contrast[:, None, None] * stencil
            allowed[rows, columns] = np.where(stencil > INNER, MIXED, DEFORMED) * np.linalg.norm(fit.contrast)
        return np.square(ndimage.uniform_filter(left, size=(0, 3, 3))).sum(axis=0) > np.square(
            allowed.clip(FAINT)
        )


class _Fit(NamedTuple):
    """A stencil at a place in a picture."""

    misfit: float  # 1 - the squared correlation of the spot with the stencil
    shape: Shape
    size: Size
    row: int  # of its centre, in fine steps
    column: int
    side: int  # of the picture, in pixels
    blur: float = BLURS[1]  # standard deviation of its softness, in pixels
    colour: int = -1  # its number in `NAMES`, once it is known
    contrast: Float[np.ndarray, "3"] = np.zeros(3)  # to the background, as `SEEN` weighs it

    def thing(self) -> Thing:
        """What was found, in shares of the side."""
        x, y = (place / FINE / self.side for place in (self.column, self.row))
        return Thing(shape=self.shape, colour=NAMES[self.colour], size=self.size, x=x, y=y)

    def stencil(self) -> tuple[Float[np.ndarray, "h w"], tuple[slice, slice]]:
        """The part of the stencil that lies in the picture, and its rows and columns there."""
        down, right = self.row % FINE, self.column % FINE
        whole = soft(self.shape, self.size, self.side, down, right, self.blur)
        half = len(whole) // 2
        top, left = self.row // FINE - half, self.column // FINE - half
        # a slice ends with its array, but a negative start would count from the end
        part = whole[max(0, -top) : max(0, self.side - top), max(0, -left) : max(0, self.side - left)]
        high, wide = part.shape
        top, left = max(0, top), max(0, left)
        return part, (slice(top, top + high), slice(left, left + wide))

    def levels(self, change: Float[np.ndarray, "3 s s"]) -> tuple[Float[np.ndarray, "3"], float]:
        """The least squares contrast with which it explains a change, and the stencil's squared length."""
        stencil, (rows, columns) = self.stencil()
        length = float(np.vdot(stencil, stencil))
        return (change[:, rows, columns] * stencil).sum(axis=(1, 2)) / length, length


def _best_fit(spot: Float[np.ndarray, "s s"]) -> _Fit:
    """The stencil nearest to a spot: its pixels' shares of its colour, 0 outside of it and its rim."""
    weight, energy = spot.clip(0), float(np.vdot(spot, spot))
    places = np.arange(len(spot)) + 0.5
    row, column = (float(weight.sum(axis=k) @ places / (weight.sum() + 1e-9)) for k in (1, 0))

    def tried(fit: _Fit) -> _Fit:
        """A fit with its misfit."""
        stencil, window = fit.stencil()
        common = max(0.0, float(np.vdot(spot[window], stencil)))
        return fit._replace(misfit=1 - common**2 / (energy * float(np.vdot(stencil, stencil)) + 1e-9))

    first = []
    for shape, size in LOOKS:  # where its weight lies on the spot's
        lower, further = weight_of(shape, size, len(spot))
        at = round((row - lower) * FINE), round((column - further) * FINE)
        first.append(tried(_Fit(1.0, shape, size, *at, len(spot))))
    # 16 looks at one place each, then the best four around theirs: a third of the work of all nine places
    steps = [(down, right) for down in (0, -1, 1) for right in (0, -1, 1)]
    near = [
        min(tried(fit._replace(row=fit.row + down, column=fit.column + right)) for down, right in steps)
        for fit in sorted(first)[:CANDIDATES]
    ]
    return min(tried(fit._replace(blur=blur)) for fit in near for blur in BLURS)


@cache
def soft(shape: Shape, size: Size, side: int, down: int, right: int, blur: float) -> Float[np.ndarray, "s s"]:
    """A stencil, moved by fine steps, with soft edges and `MARGIN` more on each side."""
    wider = np.pad(stencils(shape, size, side)[down][right], MARGIN)
    return ndimage.gaussian_filter(wider, blur) if blur else wider


@cache
def weight_of(shape: Shape, size: Size, side: int) -> tuple[float, float]:
    """Rows and columns that a shape's centre of weight lies from its centre."""
    stencil = stencils(shape, size, side)[0][0]
    row, column = ndimage.center_of_mass(stencil)
    return row + 0.5 - len(stencil) / 2, column + 0.5 - len(stencil) / 2
