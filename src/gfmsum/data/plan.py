"""The batch plan: which samples make up step t is a pure function of the seed and t.

So a run resumes exactly from any step, the number of loader workers does not matter, and no arm can
drift from another by the order in which things happened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import lcm

import numpy as np
from numpy.typing import NDArray

from gfmsum.mix import Mix


def stream(*key: int | str) -> np.random.Generator:
    """The random stream that belongs to ``key`` and to nothing else, the same on every machine."""
    # Hashed, because NumPy's own seed sequences do not tell (0, 1) from (0, 1, 0).
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16])))


def _cycle(mix: Mix) -> NDArray[np.int64]:
    """How many of the first j samples belong to each sensor: int64 (period + 1, sensors).

    Each next sample goes to the sensor that is furthest behind its share, so every stretch of the
    sequence holds the shares as exactly as whole samples allow. After one period all are exact.
    """
    shares = [share for _, share in mix.shares]
    period = lcm(*(share.denominator for share in shares))
    given = [0] * len(shares)
    rows = [tuple(given)]
    for j in range(1, period + 1):
        behind = [share * j - count for share, count in zip(shares, given, strict=True)]
        given[behind.index(max(behind))] += 1
        rows.append(tuple(given))
    return np.array(rows, dtype=np.int64)


@dataclass(slots=True)
class BatchPlan:
    """Samples of every step, for sensors with shares and pools of known size.

    A sensor's samples follow one another in a fresh permutation of its pool per epoch: no sample comes
    twice before all have come once.
    """

    mix: Mix
    pools: Mapping[str, int]  # samples of each sensor of the mix
    batch: int
    seed: Sequence[int]
    _counts: NDArray[np.int64] = field(init=False, repr=False)
    _permutations: dict[str, tuple[int, NDArray[np.int64]]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        empty = [name for name in self.mix.sensors if not self.pools.get(name)]
        if empty:
            raise ValueError(
                f"no pretraining samples for {', '.join(empty)}; drop them from the mix"
            )
        self._counts = _cycle(self.mix)

    def _given(self, samples: int) -> NDArray[np.int64]:
        """How many of the first ``samples`` of the sequence belong to each sensor."""
        period = len(self._counts) - 1
        whole, rest = divmod(samples, period)
        given: NDArray[np.int64] = self._counts[-1] * whole + self._counts[rest]
        return given

    def step(self, t: int) -> dict[str, NDArray[np.int64]]:
        """Indices into each sensor's pool for step t; sensors in the mix's order."""
        start, end = self._given(t * self.batch), self._given((t + 1) * self.batch)
        return {
            name: self._draw(name, int(a), int(b))
            for name, a, b in zip(self.mix.sensors, start, end, strict=True)
            if b > a
        }

    def _draw(self, sensor: str, start: int, end: int) -> NDArray[np.int64]:
        size = self.pools[sensor]
        cuts = [start, *range((start // size + 1) * size, end, size), end]
        pieces = [
            self._permutation(sensor, a // size)[a % size : a % size + b - a]
            for a, b in pairwise(cuts)
        ]
        return np.concatenate(pieces)

    def _permutation(self, sensor: str, epoch: int) -> NDArray[np.int64]:
        known = self._permutations.get(sensor)
        if known is None or known[0] != epoch:
            order = stream(*self.seed, "order", sensor, epoch).permutation(self.pools[sensor])
            known = self._permutations[sensor] = (epoch, order)
        return known[1]

    def unique(self, steps: int) -> dict[str, int]:
        """Distinct samples of each sensor seen in the first ``steps`` steps."""
        given = self._given(steps * self.batch)
        return {
            name: min(int(count), self.pools[name])
            for name, count in zip(self.mix.sensors, given, strict=True)
        }

    def seen(self, steps: int) -> dict[str, int]:
        """Samples of each sensor shown in the first ``steps`` steps, repeats included."""
        given = self._given(steps * self.batch)
        return dict(zip(self.mix.sensors, (int(count) for count in given), strict=True))


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where each of several blocks starts when laid end to end, and the end of the last."""
    return [0, *accumulate(sizes)]
