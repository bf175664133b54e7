"""Whether a run learned more than that images are smooth: its last losses beside linear interpolation's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

PLATEAU = 0.03  # below 1, the loss of predicting the mean: a run that ends within it never left it


@dataclass(frozen=True, slots=True)
class Learned:
    """How far one run came on one sensor."""

    arm: str
    replicate: int
    sensor: str
    loss: float  # mean over the last tenth of its steps
    line: float  # what the best linear prediction of hidden pixels from visible ones reaches

    @property
    def passed(self) -> bool:
        """Whether it lies below the line: else it learned no more than linear interpolation."""
        return self.loss < self.line

    @property
    def plateau(self) -> bool:
        """Whether it did no better than predicting the mean."""
        return self.loss > 1 - PLATEAU


def learned(curves: pd.DataFrame, lines: Mapping[str, float]) -> list[Learned]:
    """Every run's end on every sensor whose line is known.

    Args:
        curves: what curves.parquet holds.
        lines: the loss of linear interpolation by sensor.
    """
    found = []
    known = curves[curves["sensor"].isin(list(lines))]
    for (sensor, arm, replicate), run in known.groupby(["sensor", "arm", "replicate"], sort=True):
        last = run["step"] > 0.9 * run["step"].max()
        loss = float(run.loc[last, "loss"].mean())
        found.append(Learned(str(arm), int(str(replicate)), str(sensor), loss, lines[str(sensor)]))
    return found
