"""The records that travel between rooms: Arm, Run, Task, Score; and how a Run gets its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from enum import Enum, StrEnum
from fractions import Fraction
from typing import Any

from gfmsum.budget import Budget
from gfmsum.mix import Mix
from gfmsum.sensors import Band


class Role(StrEnum):
    """What an arm is for in a comparison, for a target sensor s, N samples, K sensors, compute C."""

    SOLO = "solo"  # A: sensor s alone, N samples, C
    SHARE = "share"  # B: sensor s alone, the mix's share of N (repeated), C
    PART = "part"  # P: sensor s alone, the mix's share of N, and of C
    OWN = "own"  # sensor s alone, C, more samples than its share and fewer than N: for a curve
    MIX = "mix"  # M: all sensors of the mix by share, N samples, C
    FLOOR = "floor"  # O: random initialisation

    @property
    def letter(self) -> str:
        return {"solo": "A", "share": "B", "part": "P", "own": "n", "mix": "M", "floor": "O"}[self]


@dataclass(frozen=True, slots=True)
class Arm:
    """Mix + Budget. ``assignment`` says which sensor each of the N locations is given to, ``sees``
    which of those sensors the arm is trained on: the share arm sees one part of the mix's."""

    role: Role
    assignment: Mix
    sees: tuple[str, ...]
    fraction: Fraction = Fraction(1)  # of the budget's currency


@dataclass(frozen=True, slots=True)
class Run:
    """One pretraining, named by everything that could change its weights.

    Neither the role nor the probed sensor is part of it: one mixed run serves every sensor, and a
    share arm whose mix lacks the sensor *is* the floor.
    """

    assignment: Mix
    sees: tuple[str, ...]
    budget: Budget
    data: Mapping[str, Any]  # the data source's identity, JSON types only; empty for the floor
    seed: int
    replicate: int
    fraction: Fraction = Fraction(1)  # of what the budget allows
    colocated: bool = False  # whether its sensors see the same places, or each its own
    recipe: int = 7  # raised when a change of code changes weights

    @classmethod
    def of(
        cls,
        arm: Arm,
        budget: Budget,
        data: Mapping[str, Any],
        seed: int,
        replicate: int,
        *,
        colocated: bool = False,
    ) -> Run:
        """The run of ``arm`` in one replicate."""
        if not arm.sees:  # no data, no steps: what the mix would have been does not matter
            return cls(Mix(()), (), budget.nothing(), {}, seed, replicate)
        together = colocated and len(arm.assignment.sensors) > 1
        return cls(arm.assignment, arm.sees, budget, data, seed, replicate, arm.fraction, together)

    @property
    def seen(self) -> int:
        """Samples it shows, if arms are matched in samples; about as many if in something else."""
        return int(self.fraction * self.budget.seen)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self)


@dataclass(frozen=True, slots=True)
class Seen:
    """Images of one kind that a run was pretrained on."""

    sensor: str
    bands: tuple[Band, ...]
    gsd_m: float  # pixel size of the grid, metres
    mean: tuple[float, ...]  # of each band in its unit, by which it was normalised
    deviation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """Labelled data of one sensor with its metric, and the frozen ends of its utility scale."""

    name: str
    sensor: str
    kind: str  # "classification", "regression", "segmentation" or "change_segmentation"
    metric: str  # "accuracy", "balanced_accuracy"; "r2"; "mean_iou", "iou_positive" of pixels
    floor: float  # metric of an answer that ignores the image
    ceiling: float
    classes: tuple[str, ...] = ()
    caveat: str = ""
    clustered: bool = True  # whether test items come in clusters of places
    # Items to train on, in the smallest fold; 0: not known, which makes no other task of it.
    train: int = field(default=0, compare=False)
    labels: int = 0  # that a probe is fitted on, per class, or in all for values and pixels; 0: all

    def at(self, labels: int) -> Task:
        """The same task with so few labels, which its name says: ``landuse_s1@10``; 0 is all of them."""
        return replace(self, name=f"{self.name}@{labels}", labels=labels) if labels else self

    @property
    def dense(self) -> bool:
        """Whether every pixel has a label."""
        return self.kind in ("segmentation", "change_segmentation")

    def utility(self, value: float) -> float:
        """The metric rescaled so that the floor is 0 and the ceiling is 1."""
        return (value - self.floor) / (self.ceiling - self.floor)


@dataclass(frozen=True, slots=True)
class Score:
    """One number with its Run, Task and Probe; the predictions behind it are kept beside it."""

    arm: str  # a Role, or the name of a baseline that no run stands behind
    replicate: int
    run: str  # fingerprint, empty for a baseline
    sensor: str
    task: str
    probe: str
    metric: str
    value: float
    utility: float
    floor: float
    ceiling: float
    n_test: int
    strength: float  # regularisation chosen on validation items
    edge: bool  # whether the edge of the (grown) grid won
    labels: int = 0  # the task's: per class, or in all; 0: all there are


def plain(value: object) -> Any:
    """``value`` as JSON types: dataclasses to dicts, enums to values, fractions to text."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain({name: getattr(value, name) for name in value.__dataclass_fields__})
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def fingerprint(spec: object) -> str:
    """Name a record by every field it holds: 16 hex digits of a SHA-256."""
    canonical = json.dumps(plain(spec), sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
