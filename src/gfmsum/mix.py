"""A Mix: which sensors pretraining sees, and in which shares."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from types import MappingProxyType

from gfmsum.sensors import unknown

CORPORA: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "clay": {
            "s1": 16_133_394,
            "s2": 18_683_945,
            "landsat": 11_617_984,
            "naip": 20_984_171,
            "linz": 3_299_006,
            "modis": 1_350_864,
        },
        "dofa": {
            "s1": 4_642_353,
            "s2": 977_774,
            "gaofen": 117_450,
            "naip": 2_332_351,
            "enmap": 11_483,
        },
    }
)
"""How many samples of each sensor two published models were pretrained on.

Counts as given by Clay v1.5 (its documentation of the training data) and by DOFA (Xiong et al. 2024).
The names are those of our sensors: Clay's Sentinel-2 is Level-2A, its Sentinel-1 is RTC, and its Landsat
is Level-1 and Level-2 together.
"""


@dataclass(frozen=True, slots=True)
class Mix:
    """Sensors with their shares of the samples, in a fixed order; shares add up to one."""

    shares: tuple[tuple[str, Fraction], ...]

    def __post_init__(self) -> None:
        names = self.sensors
        if len(set(names)) != len(names):
            raise ValueError(f"mix {'+'.join(names)} names a sensor twice; name each once")
        if names and (sum(s for _, s in self.shares) != 1 or any(s <= 0 for _, s in self.shares)):
            raise ValueError(f"mix shares {self.shares} must be above 0 and add up to 1")

    @classmethod
    def weighted(cls, weights: Mapping[str, int | Fraction]) -> Mix:
        """Every sensor in proportion to its weight."""
        total = Fraction(sum(weights.values())) or Fraction(1)  # shares of 0 are refused below
        return cls(tuple((name, weight / total) for name, weight in weights.items()))

    @classmethod
    def equal(cls, sensors: Collection[str]) -> Mix:
        """Every sensor in the same share."""
        return cls.weighted(dict.fromkeys(sensors, 1))

    @classmethod
    def parse(cls, text: str, available: Collection[str]) -> Mix:
        """Read which sensors, and how much of each.

        ``all``; ``s1+s2``, in equal shares; ``s1:3+s2:1``, in these proportions; ``clay`` or ``dofa``,
        in those of :data:`CORPORA`. Each may be followed by sensors to leave out, ``all-s1``: the others
        keep their proportions.

        Args:
            text: the mix.
            available: what the data source offers. Sensors come out in its order, so that two spellings
                of one mix are equal.

        Raises:
            ValueError: for an unknown or missing sensor, one named twice, some but not all of them
                weighted, a weight that is no number above 0, or an empty mix.
        """
        first, *dropped = text.split("-")
        if first in CORPORA:
            weights = {name: Fraction(count) for name, count in CORPORA[first].items()}
        elif first == "all":
            weights = dict.fromkeys(available, Fraction(1))
        else:
            weights = _weights(text, first, available)
        for name in dropped:
            if name not in weights and name not in available:
                raise ValueError(unknown("sensor", name, {*weights, *available}))
            if name not in weights:
                raise ValueError(
                    f"mix {text!r} does not hold {name} and cannot leave it out; "
                    f"it holds {', '.join(weights)}"
                )
        if len(set(dropped)) != len(dropped):
            raise ValueError(f"mix {text!r} names a sensor twice; name each once")
        kept = {name: weights[name] for name in weights if name not in dropped}
        held = {name: kept[name] for name in available if name in kept}
        if not held:
            raise ValueError(f"mix {text!r} is empty: keep at least one of {', '.join(available)}")
        missing = [name for name in kept if name not in held]
        if missing:
            raise ValueError(
                f"mix {text!r} needs {', '.join(missing)}, which this data does not offer; "
                f"leave out what is missing: mix={'-'.join([text, *missing])}"
            )
        return cls.weighted(held)

    @property
    def sensors(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.shares)

    def share(self, sensor: str) -> Fraction:
        """The sensor's share, zero if the mix does not hold it."""
        return dict(self.shares).get(sensor, Fraction(0))

    def split(self, total: int) -> dict[str, range]:
        """Cut ``range(total)`` into one contiguous part per sensor, as near to its share as whole
        numbers allow; the parts cover everything once."""
        parts, start, cumulated = {}, 0, Fraction(0)
        for name, share in self.shares:
            cumulated += share
            end = int(cumulated * total)
            parts[name] = range(start, end)
            start = end
        return parts

    def __str__(self) -> str:
        """The mix as :meth:`parse` reads it."""
        if len({share for _, share in self.shares}) <= 1:
            return "+".join(self.sensors) or "nothing"
        whole = lcm(*(share.denominator for _, share in self.shares))
        return "+".join(f"{name}:{share * whole}" for name, share in self.shares)


def _weights(text: str, words: str, available: Collection[str]) -> dict[str, Fraction]:
    """Sensors with their weights, from ``s1+s2`` or ``s1:3+s2:1``."""
    parts = [word.partition(":") for word in words.split("+")]
    names = [name for name, _, _ in parts]
    for name in names:
        if name not in available:
            raise ValueError(unknown("sensor", name, available))
    if len(set(names)) != len(names):
        raise ValueError(f"mix {text!r} names a sensor twice; name each once")
    if len({colon for _, colon, _ in parts}) == 2:
        raise ValueError(f"mix {text!r} weighs some sensors only; weigh all of them or none")
    weights = {name: weight if colon else "1" for name, colon, weight in parts}
    for name, weight in weights.items():
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", weight) or not Fraction(weight):
            raise ValueError(
                f"mix {text!r} gives {name} the weight {weight!r}: write a number above 0, like {name}:3"
            )
    return {name: Fraction(weight) for name, weight in weights.items()}
