"""Patterns of the synthetic land: what one level of the ladder looks like under each land use.

A pattern is a height between flat and tall at every point, drawn from a handful of uniform numbers; its period
is about one length. :data:`PATTERNS` has one for each land use, in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

type Floats = NDArray[np.float32]

WAVES = 16  # plane waves in a noise field
GOLDEN = 0.6180339887


def irrational(count: int, step: float = GOLDEN) -> Floats:
    """Evenly spread, never repeating numbers in 0..1."""
    return (np.arange(1, count + 1) * step % 1).astype(np.float32)


def superpose(
    axis: Floats, kx: Floats, ky: Floats, phase: Floats, *amplitudes: Floats
) -> list[Floats]:
    """(n, h, w) sums of plane waves, one for each of ``amplitudes`` (n, waves).

    On a grid a wave is an outer product of its two axes, so that the sum is a matrix product.

    Args:
        axis: (n, side) metres, both ways.
        kx, ky: (n, waves) cycles per metre.
        phase: (n, waves) cycles.
    """
    turn = np.float32(2 * np.pi)
    x = turn * (kx[:, :, None] * axis[:, None, :])  # (n, waves, w)
    y = turn * (axis[:, :, None] * ky[:, None, :] + phase[:, None, :])
    right = np.concatenate([np.cos(x), np.sin(x)], axis=1)
    left = np.concatenate([np.cos(y), -np.sin(y)], axis=2)
    sums = (left * np.tile(amplitude, 2)[:, None, :] @ right for amplitude in amplitudes)
    return [np.asarray(one) for one in sums]


@dataclass(frozen=True, slots=True)
class Patch:
    """One level of the locations that share a land use there."""

    axis: Floats  # (n, side) metres, both ways
    length: Floats  # (n,) metres
    shape: Floats  # (n, 6) uniform
    phase: Floats  # (n, 2, waves) uniform
    grain: Floats  # (2, 2)

    def trait(self, i: int, low: float, high: float) -> Floats:
        """(n, 1, 1) uniform between the two."""
        return np.asarray(low + (high - low) * self.shape[:, i, None, None], np.float32)

    def noise(self, i: int, period: float, octaves: float) -> Floats:
        """(n, h, w) smooth noise of unit variance; ``period`` in lengths, its spread in octaves."""
        spread = 2 ** (octaves * (irrational(WAVES, 3**0.5) - 0.5))
        k = spread / (period * self.length[:, None])
        turn = 2 * np.pi * (self.shape[:, :1] + irrational(WAVES))
        kx, ky = self._along_grain(k * np.cos(turn), k * np.sin(turn))
        amplitude = np.full_like(kx, np.sqrt(2 / WAVES))
        return superpose(self.axis, kx, ky, self.phase[:, i], amplitude)[0]

    def turned(self) -> tuple[Floats, Floats]:
        """(n, h, w) twice: coordinates along and across the pattern's direction, in lengths."""
        turn = np.pi * self.shape[:, :1]
        s = self.axis / self.length[:, None]
        cos, sin = np.cos(turn), np.sin(turn)
        shift = 64 * self.shape[:, 1:3, None, None]
        (ux, uy), (vx, vy) = self._along_grain(cos, sin), self._along_grain(-sin, cos)
        return (
            (s * ux)[:, None, :] + (s * uy)[:, :, None] + shift[:, 0],
            (s * vy)[:, :, None] + (s * vx)[:, None, :] + shift[:, 1],
        )

    def _along_grain(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Directions (n, ...) by whose product with a point the moved point is projected on them."""
        (xx, xy), (yx, yy) = self.grain
        return (
            np.asarray(x * xx + y * yx, np.float32),
            np.asarray(x * xy + y * yy, np.float32),
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


def _woodland(p: Patch) -> Floats:
    """Blobs: groves and clearings."""
    return 4 * (p.noise(0, 1.0, 0.8) - p.trait(1, -0.5, 0.5))


def _range(p: Patch) -> Floats:
    """Smooth gradients without an edge."""
    return 0.7 * p.noise(0, 1.3, 0.5) + p.trait(1, -0.3, 0.3)


def _river(p: Patch) -> Floats:
    """Winding flat lines through tall land."""
    return np.asarray(2 * np.abs(p.noise(0, 1.5, 0.4)) / p.trait(1, 0.4, 0.7) - 1)


def _farmland(p: Patch) -> Floats:
    """Rectangular parcels, each of one height."""
    u, v = p.turned()
    row = np.floor(v * p.trait(3, 1.5, 1.8))
    column = np.floor(u * p.trait(4, 0.9, 1.2) + p.cell(row, row))
    return 2.4 * (2 * p.cell(row, column) - 1)


def _orchard(p: Patch) -> Floats:
    """Rows of one direction."""
    u, _ = p.turned()
    return 2 * np.sin(2 * np.pi * u + 0.8 * p.noise(1, 6.0, 0.5)) + p.trait(3, -0.7, 0.7)


def _town(p: Patch) -> Floats:
    """Blocks between streets, some of them left open."""
    u, v = p.turned()
    v = v * p.trait(3, 0.7, 1.0)
    i, j = np.floor(u), np.floor(v)
    edge = np.maximum(np.abs(u - i - 0.5), np.abs(v - j - 0.5))
    return np.where(p.cell(i, j) < 0.15, -1, 12 * (0.5 - p.trait(4, 0.12, 0.22) - edge))


PATTERNS: tuple[Callable[[Patch], Floats], ...] = (
    _woodland, _range, _river, _farmland, _orchard, _town,
)  # fmt: skip
