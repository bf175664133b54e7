"""A procedural land surface: what is on the ground, before any sensor looks at it.

Every location has a surface around it that is a pure function of the location's number. A ladder
of levels, from shrubs of 3 m to plains of 25 km, each has a land use: a pattern (woodland blobs,
field parcels, orchard rows ...) with its own length and direction, and two materials that it sets
against each other. The levels vote at every point, and the material with most votes covers the
ground: a coarse level decides where the wood is, a fine one where its clearings are. Moisture,
vigour and slope are continuous fields with the same variance in every octave.

A pixel sees area averages: levels that it resolves are sampled inside it; levels finer than the
pixel enter as the whole distribution of their votes, which is what many periods average to.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

type Floats = NDArray[np.float32]
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
_WAVES = 16  # plane waves in a noise field
_FRACTAL = 48  # plane waves in a continuous field
_CONTINUOUS_M = (6.0, 30_000.0)  # their wavelengths
_SUB = 2  # samples along each side of a pixel
_FAR = 6  # samples along each side that stand for an unresolved level
_GOLDEN = 0.6180339887


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
    """

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        n, levels = len(ids), len(LEVELS)
        sizes = (levels, levels * 8, levels * 2 * _WAVES, 3 * _FRACTAL * 2, 4, len(MATERIALS) * 3)
        ends = np.cumsum(sizes)
        drawn = np.empty((n, ends[-1]), np.float32)
        for row, key in zip(drawn, ids, strict=True):
            generator(key, "surface").random(out=row, dtype=np.float32)
        length, shape, phase, fields, traits, kinds = np.split(drawn, ends[:-1], axis=1)
        low, high = JITTER
        base = np.array([level.length_m for level in LEVELS], np.float32)
        self.length_m = base * np.float32(low) * np.float32(high / low) ** length  # (n, levels)
        self.landuse = _digits(ids)  # (n, levels) index into LANDUSES
        # Uniform numbers: what kind of each material a place has (n, materials), and (n, 1, 1).
        self.bright, self.tilt, bias = np.split(kinds, 3, axis=1)
        self._wet, self._green, self.needleleaf, self.concrete = traits.T[:, :, None, None]
        self._shape = shape.reshape(n, levels, 8)
        self._phase = phase.reshape(n, levels, 2, _WAVES)
        self._fields = fields.reshape(n, 3, 2, _FRACTAL)
        self._bias = 1.2 * (bias - 0.5)
        self._votes = _SHARPNESS * self._weigh()

    def look(self, gsd_m: float, size_px: int) -> Ground:
        """The ``size_px`` by ``size_px`` pixels of ``gsd_m`` metres centred on each location.

        Raises:
            ValueError: for pixels that lie beyond the ladder.
        """
        n = len(self.ids)
        centre = ((np.arange(size_px) - (size_px - 1) / 2) * gsd_m).astype(np.float32)
        inside = ((np.arange(_SUB) + 0.5) / _SUB - 0.5).astype(np.float32) * gsd_m
        dense = (centre + inside[:, None]).ravel()
        # Patterns of 8 pixels and more are sampled at the pixels' centres: little is lost.
        hidden = [i for i, level in enumerate(LEVELS) if level.length_m < gsd_m]
        fine = [i for i, level in enumerate(LEVELS) if gsd_m <= level.length_m < 8 * gsd_m]
        coarse = [i for i, level in enumerate(LEVELS) if level.length_m >= 8 * gsd_m]
        if not fine or not coarse:
            raise ValueError(
                f"gsd_m={gsd_m} lies beyond the surface's levels; use pixels of "
                f"{LEVELS[0].length_m / 8:.2g} to {LEVELS[-1].length_m / 8:.0f} m"
            )
        votes = self._vote(coarse, centre[None]) + self._bias[:, :, None]
        weight = np.exp(self._vote(fine, dense[None])).reshape(n, -1, _SUB, size_px, _SUB, size_px)
        weight *= np.exp(votes).reshape(n, -1, 1, size_px, 1, size_px)
        cover = _average(weight.reshape(n, len(MATERIALS), -1), self._far(hidden))
        cover = cover.reshape(weight.shape).mean((2, 4))
        moisture, vigour, slope = self._continuous(centre, gsd_m)
        return Ground(cover, moisture, vigour, slope)

    def _weigh(self) -> Floats:
        """(n, materials, levels): what a tall point of each level adds to the materials' votes."""
        odds = np.array(list(LANDUSES.values()), np.float32)[self.landuse]  # (n, levels, m)
        tall = len(TALL)
        one = np.eye(len(MATERIALS), dtype=np.float32)
        own = one[_pick(odds[..., :tall], self._shape[..., 0])]
        own = own - one[tall + _pick(odds[..., tall:], self._shape[..., 1])]
        common = np.repeat(np.array([1.0, -1.0], np.float32), (tall, len(FLAT)))
        weight = np.array([level.weight for level in LEVELS], np.float32)
        return np.ascontiguousarray(((common + _OWN * own) * weight[:, None]).swapaxes(1, 2))

    def _vote(self, levels: list[int], axis: Floats) -> Floats:
        """(n, materials, points): votes of ``levels`` on the grid that ``axis`` (metres) spans."""
        heights = np.stack([self._height(i, axis) for i in levels], axis=1)
        heights = heights.reshape(len(self.ids), len(levels), -1)
        return np.asarray(self._votes[:, :, levels] @ heights)

    def _far(self, levels: list[int]) -> Floats:
        """(n, materials, samples): weights that stand for the distribution of hidden ``levels``."""
        if not levels:
            return np.ones((len(self.ids), len(MATERIALS), 1), np.float32)
        heights = []
        for i in levels:
            # Irregular steps do not alias with rows; shuffles make the levels independent.
            steps = (0.83 * (np.arange(_FAR) + 0.8 * _irrational(_FAR))).astype(np.float32)
            axis: Floats = np.multiply(steps, self.length_m[:, i, None], dtype=np.float32)
            height = self._height(i, axis).reshape(len(self.ids), -1)
            heights.append(height[:, np.argsort(_irrational(_FAR**2, (2 + i) * _GOLDEN))])
        return np.exp(self._votes[:, :, levels] @ np.stack(heights, axis=1))

    def _height(self, level: int, axis: Floats) -> Floats:
        """(n, h, w) in -1..1: from flat to tall on one level."""
        n, side = len(self.ids), axis.shape[1]
        axis = np.broadcast_to(axis, (n, side))
        out = np.empty((n, side, side), np.float32)
        for landuse, pattern in enumerate(_PATTERNS):
            at = np.flatnonzero(self.landuse[:, level] == landuse)
            if len(at):
                length, shape = self.length_m[at, level], self._shape[at, level, 2:]
                out[at] = pattern(_Patch(axis[at], length, shape, self._phase[at, level]))
        return np.clip(out, -1, 1, out=out)

    def _continuous(self, axis: Floats, gsd_m: float) -> tuple[Floats, Floats, Floats]:
        """Moisture, vigour and slope, averaged over the pixels exactly."""
        where, phase = self._fields[:, :, 0], self._fields[:, :, 1]  # (n, 3, waves)
        low, high = _CONTINUOUS_M
        k = ((np.arange(_FRACTAL) + where) / _FRACTAL).astype(np.float32)
        k = np.float32(1 / high) * np.float32(high / low) ** k  # evenly many in every octave
        turn = 2 * np.pi * (where[:, :, :1] + _irrational(_FRACTAL))
        kx, ky = k * np.cos(turn), k * np.sin(turn)
        seen = np.sinc(kx * gsd_m) * np.sinc(ky * gsd_m) * np.float32(np.sqrt(2 / _FRACTAL))
        axis = np.broadcast_to(axis, (len(self.ids), len(axis)))
        wet, green, east, north = (
            _superpose(axis, kx[:, i], ky[:, i], phase[:, i], seen[:, i] * share[:, i])
            for i, share in (
                (0, np.ones_like(k)),
                (1, np.ones_like(k)),
                (2, np.float32(np.sqrt(2)) * np.cos(turn)),
                (2, np.float32(np.sqrt(2)) * np.sin(turn)),
            )
        )
        moisture = _squash(1.5 * wet + 2 * (self._wet - 0.5))
        vigour = _squash(1.5 * green + 0.6 * wet + 2 * (self._green - 0.5))
        return moisture, vigour, np.stack([east, north], axis=1)


@dataclass(frozen=True, slots=True)
class _Patch:
    """One level of the locations that share a land use there."""

    axis: Floats  # (n, side) metres, both ways
    length: Floats  # (n,) metres
    shape: Floats  # (n, 6) uniform
    phase: Floats  # (n, 2, waves) uniform

    def trait(self, i: int, low: float, high: float) -> Floats:
        """(n, 1, 1) uniform between the two."""
        return np.asarray(low + (high - low) * self.shape[:, i, None, None], np.float32)

    def noise(self, i: int, period: float, octaves: float) -> Floats:
        """(n, h, w) smooth noise of unit variance; ``period`` in lengths, its spread in octaves."""
        spread = 2 ** (octaves * (_irrational(_WAVES, 3**0.5) - 0.5))
        k = spread / (period * self.length[:, None])
        turn = 2 * np.pi * (self.shape[:, :1] + _irrational(_WAVES))
        amplitude = np.full((len(self.length), 1), np.sqrt(2 / _WAVES), np.float32)
        kx, ky = (k * np.cos(turn)).astype(np.float32), (k * np.sin(turn)).astype(np.float32)
        return _superpose(self.axis, kx, ky, self.phase[:, i], amplitude)

    def turned(self) -> tuple[Floats, Floats]:
        """(n, h, w) twice: coordinates along and across the pattern's direction, in lengths."""
        turn = np.pi * self.shape[:, :1]
        s = self.axis / self.length[:, None]
        along, across = s * np.cos(turn), s * np.sin(turn)
        shift = 64 * self.shape[:, 1:3, None, None]
        return (
            along[:, None, :] + across[:, :, None] + shift[:, 0],
            along[:, :, None] - across[:, None, :] + shift[:, 1],
        )

    def cell(self, i: Floats, j: Floats) -> Floats:
        """Uniform numbers, one for each cell (i, j)."""
        seed = (self.shape[:, 5, None, None] * 2**24).astype(np.int32).view(np.uint32)
        mixed = i.astype(np.int32).view(np.uint32) * np.uint32(374761393)
        mixed += j.astype(np.int32).view(np.uint32) * np.uint32(668265263)
        mixed += seed
        mixed ^= mixed >> np.uint32(13)
        mixed *= np.uint32(1274126177)
        mixed ^= mixed >> np.uint32(16)
        return (mixed >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def _woodland(p: _Patch) -> Floats:
    """Blobs: groves and clearings."""
    return 4 * (p.noise(0, 1.0, 0.8) - p.trait(1, -0.5, 0.5))


def _range(p: _Patch) -> Floats:
    """Smooth gradients without an edge."""
    return 0.7 * p.noise(0, 1.3, 0.5) + p.trait(1, -0.3, 0.3)


def _river(p: _Patch) -> Floats:
    """Winding flat lines through tall land."""
    return np.asarray(2 * np.abs(p.noise(0, 1.5, 0.4)) / p.trait(1, 0.4, 0.7) - 1)


def _farmland(p: _Patch) -> Floats:
    """Rectangular parcels, each of one height."""
    u, v = p.turned()
    row = np.floor(v * p.trait(3, 1.5, 1.8))
    column = np.floor(u * p.trait(4, 0.9, 1.2) + p.cell(row, row))
    return 2.4 * (2 * p.cell(row, column) - 1)


def _orchard(p: _Patch) -> Floats:
    """Rows of one direction."""
    u, _ = p.turned()
    return 2 * np.sin(2 * np.pi * u + 0.8 * p.noise(1, 6.0, 0.5)) + p.trait(3, -0.7, 0.7)


def _town(p: _Patch) -> Floats:
    """Blocks between streets, some of them left open."""
    u, v = p.turned()
    v = v * p.trait(3, 0.7, 1.0)
    i, j = np.floor(u), np.floor(v)
    edge = np.maximum(np.abs(u - i - 0.5), np.abs(v - j - 0.5))
    return np.where(p.cell(i, j) < 0.15, -1, 12 * (0.5 - p.trait(4, 0.12, 0.22) - edge))


_PATTERNS: tuple[Callable[[_Patch], Floats], ...] = (
    _woodland, _range, _river, _farmland, _orchard, _town,
)  # fmt: skip


def respell(ids: Ids, landuse: NDArray[np.int64]) -> Ids:
    """The ids with another land use: probes ask for balanced classes."""
    step = np.int64(len(LANDUSES) ** STRONG[0])
    return ids + ((landuse - _digits(ids)[:, STRONG[0]]) * step).astype(np.uint64)


def generator(key: np.uint64, stream: str) -> np.random.Generator:
    """Independent random numbers for every location and stream."""
    return np.random.Generator(np.random.Philox(key=[int(key), zlib.crc32(stream.encode())]))


def _digits(ids: Ids) -> NDArray[np.int64]:
    powers = np.array([len(LANDUSES) ** i for i in range(len(LEVELS))], np.uint64)
    digits = (ids & PLACES)[:, None] // powers % np.uint64(len(LANDUSES))
    digits[:, STRONG] = digits[:, STRONG[:1]]
    return digits.astype(np.int64)


def _pick(odds: Floats, uniform: Floats) -> NDArray[np.int64]:
    """Index drawn with ``odds`` (..., m) by a uniform number."""
    return (np.cumsum(odds, axis=-1)[..., :-1] < uniform[..., None]).sum(-1)


def _irrational(count: int, step: float = _GOLDEN) -> Floats:
    """Evenly spread, never repeating numbers in 0..1."""
    return (np.arange(1, count + 1) * step % 1).astype(np.float32)


def _superpose(axis: Floats, kx: Floats, ky: Floats, phase: Floats, amplitude: Floats) -> Floats:
    """(n, h, w) sum of plane waves; kx, ky in cycles per metre, phase in cycles.

    On a grid a wave is an outer product of its two axes, so that the sum is a matrix product.
    """
    turn = np.float32(2 * np.pi)
    x = turn * (kx[:, :, None] * axis[:, None, :])  # (n, waves, w)
    y = turn * (axis[:, :, None] * ky[:, None, :] + phase[:, None, :])
    amplitude = amplitude[:, None, :]
    left = np.concatenate([np.cos(y) * amplitude, -np.sin(y) * amplitude], axis=2)
    return np.asarray(left @ np.concatenate([np.cos(x), np.sin(x)], axis=1))


def _average(weight: Floats, far: Floats) -> Floats:
    """(n, m, points): mean over the samples s of the shares weight * far[s] / sum over m."""
    mean = np.empty_like(weight)
    for i, hidden in enumerate(far / np.float32(far.shape[2])):
        for start in range(0, weight.shape[2], 1024):  # what stays in the cache
            near = weight[i, :, start : start + 1024]
            scale = far[i].T @ near  # (samples, points)
            scale = hidden @ np.reciprocal(scale, out=scale)
            np.multiply(near, scale, out=mean[i, :, start : start + 1024])
    return mean


def _squash(x: Floats) -> Floats:
    return np.reciprocal(1 + np.exp(-x))
