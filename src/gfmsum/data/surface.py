"""A procedural land surface: what is on the ground, before any sensor looks at it.

Every location has a surface around it that is a pure function of the location's number. A ladder
of levels, from shrubs of 3 m to plains of 25 km, each has a land use: a pattern (woodland blobs,
field parcels, orchard rows ...) with its own length and direction, and two materials that it sets
against each other. The levels vote at every point, and the material with most votes covers the
ground: a coarse level decides where the wood is, a fine one where its clearings are. Moisture,
vigour and slope are continuous fields with the same variance in every octave.

A pixel sees area averages: levels that it resolves are sampled inside it; levels finer than the
pixel enter as the whole distribution of their votes, which is what many periods average to.

What a location is like comes in parts, :data:`LATENTS`. To one sensor any of them can be those of another
location, and the patterns can have a grain: see :class:`Own`.

Land stays as it is, but for :func:`revisit`: the same ground at a later date.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gfmsum.data.patterns import (
    GOLDEN,
    PATTERNS,
    WAVES,
    Floats,
    Patch,
    irrational,
    superpose,
)

type Ids = NDArray[np.uint64]

TALL = ("crop", "trees", "built")
FLAT = ("water", "soil", "sand", "grass")
MATERIALS = TALL + FLAT


@dataclass(frozen=True, slots=True)
class Level:
    """One rung of the ladder."""

    length_m: float  # typical period of its patterns; each location jitters it
    weight: float  # of its vote: fine levels outvote coarse ones, or nothing small would be seen


LEVELS = (
    Level(3.5, 0.25),
    Level(14.0, 2.2),
    Level(50.0, 0.25),
    Level(170.0, 2.2),
    Level(700.0, 0.25),
    Level(6_500.0, 2.2),
    Level(25_000.0, 0.25),
)
STRONG = tuple(i for i, level in enumerate(LEVELS) if level.weight > 1)
"""Levels that share a location's land use; the others draw their own. Each sensor resolves one."""

SMOOTH = (
    Level(5.0, 0.1),
    Level(22.0, 1.05),
    Level(60.0, 0.1),
    Level(460.0, 1.2),
    Level(2_400.0, 2.85),
    Level(9_000.0, 2.8),
    Level(36_000.0, 5.8),
)
"""Another ladder, on which what is large outvotes what is small: the pictures are as smooth as real ones,
see experiments/world. Its levels above each pattern share the land use too."""

GSD_M = (0.1, LEVELS[-1].length_m / 8)
"""Pixels that the ladder can fill: 32 of the smallest span one period of its finest level, and the
largest still see the pattern of its coarsest."""

PLACES = np.uint64(2**62 - 1)  # the bits that number locations and spell their land uses
JITTER = (0.6, 1.7)  # a location's length over its level's, uniform in the logarithm

LANDUSES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {  # how likely each material takes part: TALL ones, then FLAT ones
        "woodland": (0.10, 0.85, 0.05, 0.10, 0.15, 0.05, 0.70),
        "range": (0.75, 0.20, 0.05, 0.05, 0.15, 0.65, 0.15),
        "river": (0.20, 0.75, 0.05, 0.85, 0.05, 0.05, 0.05),
        "farmland": (0.85, 0.10, 0.05, 0.03, 0.72, 0.05, 0.20),
        "orchard": (0.15, 0.80, 0.05, 0.03, 0.77, 0.10, 0.10),
        "town": (0.05, 0.10, 0.85, 0.10, 0.15, 0.15, 0.60),
    }
)
"""Overlapping on purpose: what is there hints at the land use, only its shape tells."""

_SHARPNESS = 2.2  # of the vote: the larger, the less a point is a mixture
_OWN = 0.9  # a pattern's own two materials against the common contrast of tall and flat
_FRACTAL = 48  # plane waves in a continuous field
_CONTINUOUS_M = (6.0, 30_000.0)  # their wavelengths
_SUB = 2  # samples along each side of a pixel
_FAR = 6  # samples along each side that stand for an unresolved level

_BLOBS = 3  # at a location, of one sort, at most
_THERE = 1 - 3 ** (-1 / _BLOBS)  # how likely each is: a third of all locations have none
_RADIUS = (0.08, 0.25)  # of a blob, over the side of the footprint
_LOBES = ((2, 0.25), (3, 0.2), (5, 0.1))  # waves around its outline, and how far they reach
_SEASON = 1.5  # the most by which the log odds of moisture and vigour change


FIELDS = len(LEVELS)  # the latent numbers of moisture, vigour and slope
KINDS = FIELDS + 3  # of what kinds of materials there are
LATENTS = KINDS + 1
"""What a location is like, in parts that can be common to all sensors or a sensor's own: the levels
(those of STRONG are one part), the three fields, and the kinds of its materials."""


def _layout() -> tuple[list[int], NDArray[np.int64]]:
    """Where each block of a location's uniform numbers ends, and to which latent each belongs."""
    levels = np.arange(len(LEVELS))
    levels[list(STRONG)] = STRONG[0]
    fields = np.arange(FIELDS, KINDS)
    blocks = (
        levels,  # lengths
        np.repeat(levels, 8),  # shapes
        np.repeat(levels, 2 * WAVES),  # phases
        np.repeat(fields, 2 * _FRACTAL),
        np.array([FIELDS, FIELDS + 1, KINDS, KINDS]),  # wet, green, needleleaf, concrete
        np.full(3 * len(MATERIALS), KINDS),
    )
    return np.cumsum([len(block) for block in blocks]).tolist(), np.concatenate(blocks)


_ENDS, _LATENT_OF = _layout()


@dataclass(frozen=True, slots=True)
class Own:
    """What n locations are to one sensor."""

    ids: Ids  # (n,) locations that stand in
    latents: NDArray[np.bool_]  # (n, LATENTS) in which they do
    grain: Floats  # (2, 2): moves the points at which the patterns of all its land are looked up


@dataclass(frozen=True, slots=True)
class Ground:
    """Area averages over the pixels of a view: n locations, m materials, h by w pixels."""

    cover: Floats  # (n, m, h, w) shares of MATERIALS, adding up to one
    moisture: Floats  # (n, h, w) in 0..1
    vigour: Floats  # (n, h, w) in 0..1, how green the herbs are
    slope: Floats  # (n, 2, h, w) towards east and north, unitless with a variance of one


class Surface:
    """The surfaces around n locations.

    Args:
        ids: (n,) location numbers; their low 62 bits spell the land uses.
        own: what is not theirs but of the sensor that looks.
        levels: LEVELS or SMOOTH.
    """

    def __init__(
        self, ids: Ids, own: Own | None = None, levels: tuple[Level, ...] = LEVELS
    ) -> None:
        self.ids, self.levels = ids, levels
        n, count = len(ids), len(levels)
        drawn, self.landuse = _draw(ids), _digits(ids)  # (n, levels) index into LANDUSES
        self._grain = np.eye(2, dtype=np.float32)
        if own is not None:
            self._grain = own.grain
            there = own.latents[:, _LATENT_OF]
            drawn = np.where(there, _draw(own.ids), drawn)
            self.landuse = np.where(there[:, :count], _digits(own.ids), self.landuse)
        self.strong = [i for i, level in enumerate(levels) if level.weight > 1]
        self.landuse[:, self.strong] = self.landuse[:, STRONG[:1]]
        length, shape, phase, fields, traits, kinds = np.split(drawn, _ENDS[:-1], axis=1)
        low, high = JITTER
        base = np.array([level.length_m for level in levels], np.float32)
        self.length_m = base * np.float32(low) * np.float32(high / low) ** length  # (n, levels)
        # Uniform numbers: what kind of each material a place has (n, materials), and (n, 1, 1).
        self.bright, self.tilt, bias = np.split(kinds, 3, axis=1)
        self._wet, self._green, self.needleleaf, self.concrete = traits.T[:, :, None, None]
        self._shape = shape.reshape(n, count, 8)
        self._phase = phase.reshape(n, count, 2, WAVES)
        self._fields = fields.reshape(n, 3, 2, _FRACTAL)
        self._bias = 1.2 * (bias - 0.5)
        self._votes = _SHARPNESS * self._weigh()

    def look(self, gsd_m: float, size_px: int) -> Ground:
        """The ``size_px`` by ``size_px`` pixels of ``gsd_m`` metres centred on each location.

        Raises:
            ValueError: for pixels that lie beyond the ladder.
        """
        if not GSD_M[0] <= gsd_m <= GSD_M[1]:
            raise ValueError(
                f"gsd_m={gsd_m} lies beyond the surface's levels; use pixels of "
                f"{GSD_M[0]:g} to {GSD_M[1]:g} m"
            )
        centre = ((np.arange(size_px) - (size_px - 1) / 2) * gsd_m).astype(np.float32)
        inside = ((np.arange(_SUB) + 0.5) / _SUB - 0.5).astype(np.float32) * gsd_m
        dense = (centre + inside[:, None]).ravel()
        # Patterns of 8 pixels and more are sampled at the pixels' centres: little is lost.
        hidden = [i for i, level in enumerate(self.levels) if level.length_m < gsd_m]
        fine = [i for i, level in enumerate(self.levels) if gsd_m <= level.length_m < 8 * gsd_m]
        coarse = [i for i, level in enumerate(self.levels) if level.length_m >= 8 * gsd_m]
        if not fine:  # the ladder has a gap here
            fine, coarse = coarse[:1], coarse[1:]
        votes = self._vote(coarse, self._heights(coarse, centre)) + self._bias[:, :, None]
        near = self._heights(fine, dense).reshape(-1, len(fine), _SUB, size_px, _SUB, size_px)
        near = near.swapaxes(3, 4).reshape(-1, len(fine), _SUB**2 * size_px**2)
        near = self._vote(fine, near).reshape(-1, len(MATERIALS), _SUB**2, size_px**2)
        cover = _average(near, np.exp(votes, out=votes), self._far(hidden))
        moisture, vigour, slope = self._continuous(centre, gsd_m)
        return Ground(cover.reshape(*cover.shape[:2], size_px, size_px), moisture, vigour, slope)

    def _weigh(self) -> Floats:
        """(n, materials, levels): what a tall point of each level adds to the materials' votes."""
        odds = np.array(list(LANDUSES.values()), np.float32)[self.landuse]  # (n, levels, m)
        tall = len(TALL)
        one = np.eye(len(MATERIALS), dtype=np.float32)
        own = one[_pick(odds[..., :tall], self._shape[..., 0])]
        own = own - one[tall + _pick(odds[..., tall:], self._shape[..., 1])]
        common = np.repeat(np.array([1.0, -1.0], np.float32), (tall, len(FLAT)))
        weight = np.array([level.weight for level in self.levels], np.float32)
        return np.ascontiguousarray(((common + _OWN * own) * weight[:, None]).swapaxes(1, 2))

    def _vote(self, levels: list[int], heights: Floats) -> Floats:
        """(n, materials, points): votes of ``levels`` whose heights are (n, levels, points)."""
        return np.asarray(self._votes[:, :, levels] @ heights)

    def _far(self, levels: list[int]) -> Floats:
        """(n, materials, samples): weights that stand for the distribution of hidden ``levels``."""
        if not levels:
            return np.ones((len(self.ids), len(MATERIALS), 1), np.float32)
        # Irregular steps do not alias with rows; shuffles make the levels independent.
        steps = (0.83 * (np.arange(_FAR) + 0.8 * irrational(_FAR))).astype(np.float32)
        heights = self._heights(levels, self.length_m[:, levels, None] * steps)
        for j, level in enumerate(levels):
            order = np.argsort(irrational(_FAR**2, (2 + level) * GOLDEN))
            heights[:, j] = heights[:, j, order]
        return np.exp(self._vote(levels, heights))

    def _heights(self, levels: list[int], axis: Floats) -> Floats:
        """(n, levels, points) in -1..1: from flat to tall.

        Args:
            levels: k of them.
            axis: (side,) metres, both ways, or (n, k, side): the points are where they cross.
        """
        n, k, side = len(self.ids), len(levels), axis.shape[-1]
        axis = np.broadcast_to(axis, (n, k, side)).reshape(-1, side)
        length, shape, phase = (
            trait[:, levels].reshape(n * k, *trait.shape[2:])
            for trait in (self.length_m, self._shape[..., 2:], self._phase)
        )
        landuse = self.landuse[:, levels].ravel()
        out = np.empty((n * k, side, side), np.float32)
        for i, pattern in enumerate(PATTERNS):
            at = np.flatnonzero(landuse == i)
            if len(at):
                patch = Patch(axis[at], length[at], shape[at], phase[at], self._grain)
                out[at] = pattern(patch)
        return np.clip(out, -1, 1, out=out).reshape(n, k, -1)

    def _continuous(self, axis: Floats, gsd_m: float) -> tuple[Floats, Floats, Floats]:
        """Moisture, vigour and slope, averaged over the pixels exactly."""
        where, phase = self._fields[:, :, 0], self._fields[:, :, 1]  # (n, 3, waves)
        low, high = _CONTINUOUS_M
        k = ((np.arange(_FRACTAL) + where) / _FRACTAL).astype(np.float32)
        k = np.float32(1 / high) * np.float32(high / low) ** k  # evenly many in every octave
        turn = 2 * np.pi * (where[:, :, :1] + irrational(_FRACTAL))
        kx, ky = k * np.cos(turn), k * np.sin(turn)
        seen = np.sinc(kx * gsd_m) * np.sinc(ky * gsd_m) * np.float32(np.sqrt(2 / _FRACTAL))
        axis = np.broadcast_to(axis, (len(self.ids), len(axis)))
        east = (
            np.float32(np.sqrt(2)) * np.cos(turn[:, 2]),
            np.float32(np.sqrt(2)) * np.sin(turn[:, 2]),
        )
        (wet,), (green,), slope = (
            superpose(
                axis, kx[:, i], ky[:, i], phase[:, i], *(seen[:, i] * share for share in shares)
            )
            for i, shares in enumerate(((np.float32(1),), (np.float32(1),), east))
        )
        moisture = _squash(1.5 * wet + 2 * (self._wet - 0.5))
        vigour = _squash(1.5 * green + 0.6 * wet + 2 * (self._green - 0.5))
        return moisture, vigour, np.stack(slope, axis=1)


def revisit(ids: Ids, ground: Ground) -> tuple[Ground, Floats]:
    """The ground of n locations at a later date, and the share of every pixel that has changed.

    At two locations in three, blobs have been cleared: all that covered them has made room for bare soil,
    or for buildings. Another season has come too, everywhere: the land is wetter or drier and more or less
    green, as a whole and, at two locations in three, once more in other blobs. That is seen, but is no change.

    Blobs are drawn by location, in proportion to the footprint and not in metres: so pixels of any size
    show them.

    Args:
        ids: (n,) location numbers.
        ground: what covers them at the earlier date, h = w.

    Returns:
        The later ground, and float32 (n, h, w): the share of the area whose material is another one.
    """
    numbers = 4 + len(_LOBES)
    uniform = np.empty((len(ids), 2 * _BLOBS * numbers + 5), np.float32)
    for row, rng in zip(uniform, draws(ids, "revisit"), strict=True):
        rng.random(out=row, dtype=np.float32)
    built, *seasons = uniform[:, -5:].T[..., None, None]
    blobs = uniform[:, :-5].reshape(len(ids), 2, _BLOBS, numbers).swapaxes(0, 1)
    cleared, weathered = (_blobs(some, ground.cover.shape[-1]) for some in blobs)
    wetter, wetter_there, greener, greener_there = (_SEASON * (2 * u - 1) for u in seasons)
    one = np.eye(len(MATERIALS), dtype=np.float32)[:, :, None, None]
    new = np.where(
        built[:, None] < 0.5, one[MATERIALS.index("built")], one[MATERIALS.index("soil")]
    )
    cover = ground.cover + cleared[:, None] * (new - ground.cover)
    later = Ground(
        cover,
        _shifted(ground.moisture, wetter + weathered * wetter_there),
        _shifted(ground.vigour, greener + weathered * greener_there),
        ground.slope,
    )
    return later, np.abs(cover - ground.cover).sum(1) / 2


def _blobs(uniform: Floats, side: int) -> Floats:
    """(n, side, side) shares of pixels inside blobs.

    Args:
        uniform: (n, blobs, 7): whether one is there, where, how large, and how its outline winds.
        side: of the footprint, pixels.
    """
    there, x, y, size, *phases = np.moveaxis(uniform, 2, 0)[..., None, None]
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = axis - x, axis[:, None] - y
    turn, (low, high) = np.arctan2(y, x), _RADIUS
    winding = (
        reach * np.cos(waves * turn + 2 * np.pi * phase)
        for (waves, reach), phase in zip(_LOBES, phases, strict=True)
    )
    edge = (low + (high - low) * size) * (1 + sum(winding))
    # A pixel on the edge lies inside in part.
    inside = np.clip(side * (edge - np.hypot(x, y)) + 0.5, 0, 1)
    return np.asarray(np.where(there < _THERE, inside, 0).max(1), np.float32)


def _shifted(share: Floats, by: Floats) -> Floats:
    """Shares whose odds are exp(``by``) times as high."""
    return np.asarray(share / (share + (1 - share) * np.exp(-by)), np.float32)


def respell(ids: Ids, landuse: NDArray[np.int64]) -> Ids:
    """The ids with another land use: probes ask for balanced classes."""
    step = np.int64(len(LANDUSES) ** STRONG[0])
    return ids + ((landuse - _digits(ids)[:, STRONG[0]]) * step).astype(np.uint64)


def draws(ids: Ids, stream: str) -> Iterator[np.random.Generator]:
    """Independent random numbers for every location and stream; take them before the next ones."""
    # To turn one generator is ten times as fast as to make one for each location.
    bits = np.random.Philox(key=0)
    generator, start = np.random.Generator(bits), bits.state
    # Numbers from 2**63 on have ever since gone through a double: that keeps pixels what they are.
    keys = np.where(ids < 2**63, ids, ids.astype(np.float64).astype(np.uint64))
    for key in keys:
        start["state"]["key"][:] = key, zlib.crc32(stream.encode())
        bits.state = start
        yield generator


def _draw(ids: Ids) -> Floats:
    """(n, numbers) uniform: all that a location is, but for its land uses."""
    out = np.empty((len(ids), _ENDS[-1]), np.float32)
    for row, rng in zip(out, draws(ids, "surface"), strict=True):
        rng.random(out=row, dtype=np.float32)
    return out


def _digits(ids: Ids) -> NDArray[np.int64]:
    powers = np.array([len(LANDUSES) ** i for i in range(len(LEVELS))], np.uint64)
    digits = (ids & PLACES)[:, None] // powers % np.uint64(len(LANDUSES))
    digits[:, STRONG] = digits[:, STRONG[:1]]
    return digits.astype(np.int64)


def _pick(odds: Floats, uniform: Floats) -> NDArray[np.int64]:
    """Index drawn with ``odds`` (..., m) by a uniform number."""
    return (np.cumsum(odds, axis=-1)[..., :-1] < uniform[..., None]).sum(-1)


def _average(near: Floats, wide: Floats, far: Floats) -> Floats:
    """(n, m, pixels): mean share of every material m over the points i and the samples s.

    Args:
        near: (n, m, i, pixels) votes; overwritten.
        wide: (n, m, pixels) weights.
        far: (n, m, s) weights. A share is exp(near) * wide * far, over the sum of it over m.
    """
    for votes, beside, hidden in zip(near, wide, far, strict=True):
        weight = np.exp(votes, out=votes)  # one location at a time stays in the cache
        weight *= beside[:, None]
        flat, mean = weight.reshape(len(weight), -1), hidden / np.float32(hidden.shape[1])
        for start in range(0, flat.shape[1], 1024):
            part = flat[:, start : start + 1024]
            scale = hidden.T @ part  # (samples, points)
            part *= mean @ np.reciprocal(scale, out=scale)
    return np.asarray(near.mean(2))


def _squash(x: Floats) -> Floats:
    return np.reciprocal(1 + np.exp(-x))
