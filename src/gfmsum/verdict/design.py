"""What is compared and how it will be judged, and what judging gives: the words of every verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gfmsum.records import Role, fingerprint, plain
from gfmsum.sensors import unknown

EXACT = 1e-12  # utilities nearer than this are the same number
CHANGED = "tasks, contrasts or margin were changed after the runs"


class Kind(StrEnum):
    """What a contrast may be judged to be."""

    MORE = "more"
    LESS = "less"
    EQUAL = "equal"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Contrast:
    """A linear combination of arms, fixed before the run.

    Confirmatory contrasts form the family that Holm adjusts; the others are exploratory, adjusted
    after Benjamini and Hochberg, and are to be called so.
    """

    name: str
    symbol: str
    weights: Mapping[str, float]  # arm to coefficient
    meaning: str
    confirmatory: bool = False

    def __post_init__(self) -> None:
        for arm in self.weights:
            if arm not in list(Role):
                raise ValueError(f"contrast {self.name}: {unknown('arm', arm, map(str, Role))}")
        if not self.weights or abs(sum(self.weights.values())) > EXACT:
            raise ValueError(
                f"contrast {self.name}: weights {dict(self.weights)} must add up to 0, as (1, -1)"
            )


CONTRASTS: tuple[Contrast, ...] = (
    Contrast(
        "substitution", "Δ", {"mix": 1, "solo": -1},
        "mix − solo: other sensors' samples in place of the sensor's own, compute equal", True,
    ),
    Contrast(
        "addition", "α", {"mix": 1, "share": -1},
        "mix − share: other sensors' samples added to the sensor's own, compute equal",
    ),
    Contrast(
        "dilution", "δ", {"solo": 1, "share": -1},
        "solo − share: what the sensor's own samples, given up for the mix, would have added",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Design:
    """What is compared and how it will be judged, fixed before the run."""

    target: str  # sensor whose tasks are scored
    mix: tuple[str, ...]  # sensors of the mix arm
    margin: float = 0.01  # utility; a difference surely within ± margin is equal
    confidence: float = 0.95
    contrasts: tuple[Contrast, ...] = CONTRASTS
    tasks: tuple[
        str, ...
    ] = ()  # an arm's utility is the mean over these; all that were scored if none

    def __post_init__(self) -> None:
        names = [contrast.name for contrast in self.contrasts]
        if not self.target or len(set(self.mix)) != len(self.mix) or set(self.mix) <= {self.target}:
            raise ValueError(
                f"mix {self.mix} must name each sensor once and one besides the target "
                f"{self.target!r}, or mix and solo are the same runs; add a sensor"
            )
        if not 0 < self.margin < math.inf or not 0.5 <= self.confidence < 1:
            raise ValueError(
                f"margin={self.margin} must be above 0 and confidence={self.confidence} in "
                "[0.5, 1); give them as 0.01 and 0.95"
            )
        if len(set(names)) != len(names) or "substitution" not in names:
            raise ValueError(f"contrasts {names} must be unique and hold 'substitution'; add it")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(
                f"tasks {self.tasks} must name each task once, or one would count twice"
            )

    @property
    def fingerprint(self) -> str:
        """Names all that decides the kinds, not how it is worded or ordered: 16 hex digits."""
        contrasts = {
            c.name: [{arm: float(weight) for arm, weight in c.weights.items()}, c.confirmatory]
            for c in self.contrasts
        }
        numbers = [float(self.margin), float(self.confidence)]
        tasks = [sorted(self.tasks)] if self.tasks else []
        return fingerprint([self.target, sorted(self.mix), *numbers, contrasts, *tasks])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A contrast, estimated and judged. All in utility; None where a number does not exist."""

    name: str
    symbol: str
    meaning: str
    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None  # root of run_variance + item_variance
    df: float | None = None
    p: float | None = None  # two-sided
    p_adjusted: float | None = None
    p_equivalence: float | None = None  # the larger of the two one-sided tests'
    mde: float | None = None  # at the unadjusted level
    kind: Kind = Kind.UNDECIDED
    negligible: bool = False  # equal, although the difference from 0 is significant
    exploratory: bool = True
    run_variance: float | None = None
    item_variance: float | None = None
    why: str = ""  # what the numbers lack, if anything


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a study of one target found; kind and sentence are those of the substitution."""

    target: str
    mix: tuple[str, ...]
    kind: Kind
    sentence: str
    margin: float
    confidence: float
    estimates: tuple[Estimate, ...]
    identity_residual: float | None  # Δ − (α − δ): rounding only; None if one is not estimated
    superiority: float  # chance that a mix run beats a solo run, over all pairs of runs
    arms: Mapping[str, Mapping[str, Any]]  # utility: mean; replicates: each one's mean over tasks
    correlation: Mapping[str, float | None]  # "solo~mix": Pearson over common replicates
    tasks: tuple[Mapping[str, Any], ...]  # raw: means and substitution in units of the metric
    design: str  # fingerprint of the design it was judged by
    recorded: str | None = None  # fingerprint of the design as written down before the runs

    @property
    def changed(self) -> bool:
        """Whether it was judged by another design than the recorded one."""
        return self.recorded not in (None, self.design)

    def as_dict(self) -> dict[str, Any]:
        """JSON types only, without NaN or infinity."""
        return dict(plain(self))
