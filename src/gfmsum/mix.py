"""A Mix: which sensors pretraining sees, and in which shares."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

from gfmsum.sensors import unknown


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
    def equal(cls, sensors: Collection[str]) -> Mix:
        """Every sensor in the same share."""
        return cls(tuple((name, Fraction(1, len(sensors))) for name in sensors))

    @classmethod
    def parse(cls, text: str, available: Collection[str]) -> Mix:
        """Read ``all``, ``s1+s2`` or ``all-s1``; ``available`` is what the data source offers.

        Sensors come out in the order of ``available``, so that two spellings of one mix are equal.

        Raises:
            ValueError: for an unknown sensor, a sensor named twice or an empty mix.
        """
        first, *dropped = text.split("-")
        named = list(available) if first == "all" else first.split("+")
        for name in [*named, *dropped]:
            if name not in available:
                raise ValueError(unknown("sensor", name, available))
        for group in (named, dropped):
            if len(set(group)) != len(group):
                raise ValueError(f"mix {text!r} names a sensor twice; name each once")
        kept = [name for name in available if name in named and name not in dropped]
        if not kept:
            raise ValueError(f"mix {text!r} is empty: keep at least one of {', '.join(available)}")
        return cls.equal(kept)

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
        return "+".join(self.sensors) or "nothing"
