"""The batch plan: which samples make up step t is a pure function of the seed and t.

So a run resumes exactly from any step, the number of loader workers does not matter, and no arm can
drift from another by the order in which things happened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from gfmsum.mix import Mix


def stream(*key: int | str) -> np.random.Generator:
    """The random stream that belongs to ``key`` and to nothing else, the same on every machine."""
    # Hashed, because NumPy's own seed sequences do not tell (0, 1) from (0, 1, 0).
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16])))


def allocate(mix: Mix, samples: int) -> NDArray[np.int64]:
    """How many of the first ``samples`` of a sequence belong to each sensor: int64 (sensors,).

    The m-th sample of a sensor with share s is due at (m - 1/2) / s, ties in the mix's order (Webster's
    divisor method): so every stretch holds the shares about as exactly as whole samples allow,
    whole periods hold them exactly, and nothing need be remembered, however long the period.
    """
    shares = [share for _, share in mix.shares]
    # By this time no more than `samples` are due, and fewer by less than the number of sensors.
    now = max(Fraction(0), samples - Fraction(len(shares), 2))
    given = [int(share * now + Fraction(1, 2)) for share in shares]
    for _ in range(samples - sum(given)):
        due = [(2 * count + 1) / share for count, share in zip(given, shares, strict=True)]
        given[due.index(min(due))] += 1
    return np.array(given, dtype=np.int64)


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
    _permutations: dict[str, tuple[int, NDArray[np.int64]]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        empty = [name for name in self.mix.sensors if not self.pools.get(name)]
        if empty:
            raise ValueError(
                f"no pretraining samples for {', '.join(empty)}; drop them from the mix"
            )

    def step(self, t: int) -> dict[str, NDArray[np.int64]]:
        """Indices into each sensor's pool for step t; sensors in the mix's order."""
        start, end = allocate(self.mix, t * self.batch), allocate(self.mix, (t + 1) * self.batch)
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
        given = allocate(self.mix, steps * self.batch)
        return {
            name: min(int(count), self.pools[name])
            for name, count in zip(self.mix.sensors, given, strict=True)
        }

    def seen(self, steps: int) -> dict[str, int]:
        """Samples of each sensor shown in the first ``steps`` steps, repeats included."""
        given = allocate(self.mix, steps * self.batch)
        return dict(zip(self.mix.sensors, (int(count) for count in given), strict=True))


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where each of several blocks starts when laid end to end, and the end of the last."""
    return [0, *accumulate(sizes)]
