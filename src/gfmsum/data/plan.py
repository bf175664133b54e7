"""The batch plan: which samples make up step t is a pure function of the seed and t.

So a run resumes exactly from any step, the number of loader workers does not matter, and no arm can
drift from another by the order in which things happened. Nothing is listed: a plan over 10^8 samples
takes no more memory than one over ten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gfmsum.mix import Mix


def stream(*key: int | str) -> np.random.Generator:
    """The random stream that belongs to ``key`` and to nothing else, the same on every machine."""
    # Hashed, because NumPy's own seed sequences do not tell (0, 1) from (0, 1, 0).
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16])))


LISTED = 2**16  # numbers, up to which a permutation is remembered whole
_ROUNDS = 8
_LEAST_BITS = 3  # of a half: smaller ones have too few round functions to shuffle a handful well
_MIXERS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)  # of SplitMix64


def permute(index: NDArray[np.int64], size: int, *key: int | str) -> NDArray[np.int64]:
    """Where the random permutation of ``range(size)`` that belongs to ``key`` sends some numbers.

    A Feistel network permutes the numbers of 2 b bits, from which a walk along its cycles picks those
    below ``size`` (Black and Rogaway 2002). Long permutations are never listed; short ones are, to be
    looked up.

    Args:
        index: int64 (n,) in [0, size).
        size: up to 2**62.
        key: names the permutation.

    Returns:
        int64 (n,) in [0, size), different for different numbers.
    """
    if size <= LISTED:
        return _listed(size, key)[index]
    return _walk(index, size, key)


@lru_cache(maxsize=64)
def _listed(size: int, key: tuple[int | str, ...]) -> NDArray[np.int64]:
    return _walk(np.arange(size), size, key)


def _walk(index: NDArray[np.int64], size: int, key: tuple[int | str, ...]) -> NDArray[np.int64]:
    bits = max(_LEAST_BITS, -(-(size - 1).bit_length() // 2))
    keys = stream(*key).integers(2**64, size=_ROUNDS, dtype=np.uint64)
    out = index.astype(np.uint64)
    walking = np.arange(len(out))
    while len(walking):
        out[walking] = moved = _encrypt(out[walking], keys, bits)
        walking = walking[moved >= size]
    return out.astype(np.int64)


def _encrypt(number: NDArray[np.uint64], keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """A Feistel network on two halves of ``bits`` bits: each round swaps them and masks one."""
    width, mask = np.uint64(bits), np.uint64(2**bits - 1)
    left, right = number >> width, number & mask
    for key in keys:
        mixed = (right + key) * _MIXERS[0]
        mixed = (mixed ^ (mixed >> np.uint64(31))) * _MIXERS[1]
        left, right = right, left ^ ((mixed >> np.uint64(33)) & mask)
    return (left << width) | right


def share_out(
    mix: Mix, unique: int, sensor: str, places: Mapping[str, str], held: int, *, colocated: bool
) -> range:
    """The part of its list of places that a sensor is given in a mix.

    Each place of a list goes to one sensor: those of one list are given parts that follow each other,
    in proportion if the list is too short for all. Where the design is co-located, all parts start at
    the beginning instead, and sensors of one list see the same places.

    Args:
        mix: whose shares count.
        unique: samples of all sensors together.
        sensor: one of the mix.
        places: the name of each sensor's list.
        held: how many places the sensor's list has.
        colocated: the design.
    """
    wanted = {name: len(part) for name, part in mix.split(unique).items()}
    if colocated:
        return range(min(wanted[sensor], held))
    group = {n: count for n, count in wanted.items() if places[n] == places[sensor] and count}
    if not wanted[sensor]:
        return range(0)
    return Mix.weighted(group).split(min(held, sum(group.values())))[sensor]


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


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Samples of every step, for sensors with shares and pools of known size.

    A sensor's samples follow one another in a fresh permutation of its pool per epoch: no sample comes
    twice before all have come once.
    """

    mix: Mix
    pools: Mapping[str, int]  # samples of each sensor of the mix
    batch: int
    seed: Sequence[int]

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
            permute(np.arange(a, b) % size, size, *self.seed, "order", sensor, a // size)
            for a, b in pairwise(cuts)
        ]
        return np.concatenate(pieces)

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
