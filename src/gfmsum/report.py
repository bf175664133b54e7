"""What a study found, as one self-contained HTML file.

:func:`render` reads a study's folder and writes ``report.html`` beside the tables: no script, no
request, the same bytes for the same input. Utilities and metrics are shown in points: times 100.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from gfmsum.catalog import CATALOG
from gfmsum.figures import (
    ARMS,
    BASELINES,
    DARK,
    LIGHT,
    MINUS,
    compared,
    count,
    curves,
    dots,
    forest,
    interval,
    metric_name,
    outcome,
    png,
    points,
    probability,
    quantity,
)
from gfmsum.learned import PLATEAU, Learned, learned
from gfmsum.records import Role

NAME = "report.html"

# --- reading ---


@dataclass(frozen=True, slots=True)
class Study:
    """What one study wrote, as read back from its folder."""

    verdict: Mapping[str, Any]
    scores: pd.DataFrame
    curves: pd.DataFrame
    interpolation: Mapping[str, float]  # loss of linear interpolation, by sensor
    runs: Mapping[str, Mapping[str, Any]]  # the ledger
    config: str
    reconstructions: Mapping[str, NDArray[np.float32]]  # (k, 3, h, w, channels) in [0, 1]

    @classmethod
    def read(cls, folder: Path) -> Study:
        """Read a study's folder; curves, reconstructions and what linear interpolation reaches may be absent.

        Raises:
            ValueError: if the folder is no finished study, or one of its files is damaged.
        """
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give the one that a study wrote")

        def read[T](name: str, how: Callable[[Path], T], otherwise: T | None = None) -> T:
            path = folder / name
            if not path.exists():
                if otherwise is not None:
                    return otherwise
                raise ValueError(f"{path} is missing: the study has not finished, run it again")
            try:
                return how(path)
            except Exception as error:
                cause = " ".join(str(error).split())
                raise ValueError(f"{path} cannot be read ({cause}): run the study again") from error

        no_curves = pd.DataFrame(
            columns=["arm", "replicate", "run", "step", "seen", "sensor", "loss"]
        )
        return cls(
            verdict=read("verdict.json", _read_verdict),
            scores=read("scores.parquet", pd.read_parquet),
            curves=read("curves.parquet", pd.read_parquet, no_curves),
            interpolation=read("interpolation.json", _read_lines, {}),
            runs=read(
                "ledger.json", lambda path: dict(json.loads(path.read_text("utf-8"))["runs"])
            ),
            config=read("config.yaml", lambda path: path.read_text("utf-8")),
            reconstructions=read("reconstructions.npz", _read_arrays, {}),
        )


def _read_verdict(path: Path) -> dict[str, Any]:
    verdict = json.loads(path.read_text("utf-8"))
    if not isinstance(verdict, dict) or verdict.get("schema") != 1:
        raise ValueError("not a verdict of schema 1")
    return verdict


def _read_lines(path: Path) -> dict[str, float]:
    lines = json.loads(path.read_text("utf-8"))
    # None stands for a sensor with too few images to say.
    return {name: float(loss) for name, loss in lines.items() if loss is not None}


def _read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


# --- what the page says ---


def _title(sensor: str) -> str:
    return CATALOG[sensor].title if sensor in CATALOG else sensor


def _estimates(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for estimate in verdict["estimates"]:
        difference, meaning = compared(estimate)
        rows.append(
            {
                "symbol": estimate["symbol"],
                "name": estimate["name"],
                "difference": difference,
                "meaning": meaning,
                "cells": [
                    points(estimate["value"], 2, signed=True),
                    interval(estimate["low"], estimate["high"]),
                    probability(estimate["p"]),
                    probability(estimate["p_adjusted"]),
                    probability(estimate["p_equivalence"]),
                    points(estimate["mde"], 2),
                ],
                "outcome": outcome(estimate),
                "exploratory": bool(estimate.get("exploratory")),
            }
        )
    return rows


def _identity(verdict: Mapping[str, Any]) -> str:
    """Δ = α − δ with this study's numbers, empty unless all three are there."""
    value = {estimate["name"]: estimate["value"] for estimate in verdict["estimates"]}
    if any(value.get(name) is None for name in ("substitution", "addition", "dilution")):
        return ""
    whole, added, diluted = (
        points(value[name], 2, signed=True) for name in ("substitution", "addition", "dilution")
    )
    return f"\u0394 = \u03b1 \u2212 \u03b4: {whole} = ({added}) \u2212 ({diluted})"


def _mean(rows: Sequence[Mapping[str, Any]], key: str, unit: float = 1.0) -> float:
    return float(np.mean([row[key] for row in rows])) / unit


def _ledger(study: Study) -> list[dict[str, Any]]:
    """What each arm spent, mean over its runs."""
    table = []
    for arm in ARMS:
        runs = [run for _, run in sorted(study.runs.items()) if run["arm"] == arm]
        if not runs:
            continue
        unique = [{"unique": sum(run["unique_by_sensor"].values())} for run in runs]
        table.append(
            {
                "arm": arm,
                "sees": "+".join(runs[0]["sees"]) or "nothing",
                "unique": _mean(unique, "unique"),
                "seen": _mean(runs, "seen"),
                "flops": _mean(runs, "flops"),
                "cells": [
                    count(_mean(runs, "steps")),
                    count(_mean(runs, "seen")),
                    count(_mean(unique, "unique")),
                    quantity(_mean(runs, "encoder_tokens", 1e6)),
                    quantity(_mean(runs, "decoder_tokens", 1e6)),
                    quantity(_mean(runs, "flops", 1e12)),
                    quantity(_mean(runs, "seconds")),
                    f"{sum(bool(run['reused']) for run in runs)} of {len(runs)}",
                ],
            }
        )
    return table


def _spread(ledger: Sequence[Mapping[str, Any]]) -> str:
    """How far the trained arms' compute lies apart, in percent of their mean; empty for one arm."""
    spent = [row["flops"] for row in ledger if row["flops"]]
    return (
        f"{100 * (max(spent) - min(spent)) / float(np.mean(spent)):.2f}" if len(spent) > 1 else ""
    )


def _arms(verdict: Mapping[str, Any], ledger: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What each arm saw, in a sentence."""
    spent = {row["arm"]: row for row in ledger}
    target, mix = verdict["target"], verdict["mix"]
    part = (
        "its part of the mix alone, repeated" if target in mix else "but the mix holds none of it"
    )

    def samples(arm: str) -> str:
        row = spent.get(arm)
        return f"{count(row['unique'])} samples, {count(row['seen'])} shown" if row else "no ledger"

    told = {
        "solo": f"{target} alone: {samples('solo')}",
        "share": f"{target}, {part}: {samples('share')}",
        "mix": f"{', '.join(mix)}: {samples('mix')} in all",
        "floor": "nothing: the same model at random initialisation",
    }
    return [
        {
            "arm": arm,
            "letter": Role(arm).letter,
            "sees": told[arm],
            "utility": points(verdict["arms"][arm]["utility"]),
        }
        for arm in ARMS
        if arm in verdict["arms"]
    ]


def _tasks(study: Study) -> list[dict[str, Any]]:
    """One row per task and number of labels: means with their spread, and whether it can tell arms apart."""
    rows, shown, floors = list[dict[str, Any]](), set[str](), _floors(study.verdict)
    for task in sorted(study.verdict["tasks"], key=_place):
        name = _place(task)[0]
        scores = study.scores[study.scores["sensor"] == study.verdict["target"]]
        scores = scores[scores["task"] == task["task"]]
        means: Mapping[str, float | None] = task["means"]
        spreads = {
            str(name): float(group["value"].std(ddof=1)) if len(group) > 1 else None
            for name, group in scores.groupby("arm")
        }
        solo, mix = means.get("solo"), means.get("mix")
        rows.append(
            {
                "task": name,
                "first": name not in shown,
                "labels": "" if task.get("labels") is None else f"{task['labels'] or 'all'} labels",
                "metric": metric_name(task["metric"]),
                "size": f"{count(task['n_test'])} test items"
                + (f" in {count(task['clusters'])} places" if task.get("clusters") else ""),
                "blind": blind(means, spreads),
                "cells": [
                    *(
                        {"value": points(value), "spread": ""}
                        for value in (task["floor"], *(means.get(floor) for floor in floors))
                    ),
                    *(
                        {
                            "value": points(means.get(arm)),
                            "spread": f"\u00b1{points(spread)}" if spread is not None else "",
                        }
                        for arm in ("floor", "solo", "share", "mix")
                        for spread in (spreads.get(arm),)
                    ),
                    {
                        "value": points(
                            None if solo is None or mix is None else mix - solo, signed=True
                        ),
                        "spread": "",
                    },
                ],
                "dots": Markup(dots(scores, task["task"]))
                if scores["arm"].isin(list(ARMS)).any()
                else "",
            }
        )
        shown.add(name)
    for row, following in pairwise([*rows, {"first": True}]):
        row["last"] = following["first"]
    return rows


def _place(task: Mapping[str, Any]) -> tuple[str, float]:
    """A task's name without the number of labels, and that number: rows of one task stand together."""
    labels = task.get("labels")
    return task["task"].removesuffix(f"@{labels}"), labels or math.inf


def _floors(verdict: Mapping[str, Any]) -> list[str]:
    """What stands beside the arms without any pretraining, nor a network of theirs."""
    held = {name for task in verdict["tasks"] for name in task["means"]} - set(Role)
    known = [name for name in reversed(BASELINES) if name in held]
    return [*known, *sorted(held - set(known))]


def blind(means: Mapping[str, float | None], spreads: Mapping[str, float | None]) -> str:
    """Why a task cannot tell good pretraining from none; empty if it can.

    The best pretrained arm must beat every floor without a network and the random initialisation by more
    than two standard deviations of single runs: of its own, and of its difference to the random ones.

    Args:
        means: metric by arm and baseline, mean over replicates.
        spreads: standard deviation over replicates, None where there is only one.
    """
    trained = {arm: means[arm] for arm in ("solo", "share", "mix") if means.get(arm) is not None}
    if not trained:
        return ""
    best = max(trained, key=lambda arm: trained[arm] or 0.0)
    height, own = trained[best] or 0.0, spreads.get(best) or 0.0
    untrained = means.get("floor")
    reasons = [
        f"{name} {'do' if name.endswith('s') else 'does'} as well"
        for name, value in means.items()
        if name not in set(Role) and value is not None and height - value <= 2 * own
    ]
    if untrained is not None and height - untrained <= 2 * math.hypot(
        own, spreads.get("floor") or 0.0
    ):
        reasons.append("random initialisation does as well")
    return " and ".join(reasons)


def _curves(study: Study) -> dict[str, Any]:
    """A panel per sensor of the mix, what was learned there, and which runs have no curve."""
    frame, verdict = study.curves, study.verdict
    drawn = set(zip(frame["arm"], frame["replicate"], strict=True))
    missing = sorted(
        f"{run['arm']} {run['replicate']}" + (" (reused)" if run["reused"] else "")
        for run in study.runs.values()
        if run["steps"] and (run["arm"], run["replicate"]) not in drawn
    )
    named, lines = set(frame["sensor"]), study.interpolation
    ends = learned(frame, lines)
    return {
        "panels": [
            {
                "sensor": name,
                "title": _title(name),
                "figure": Markup(curves(frame, name, lines)),
                "learned": _learned([end for end in ends if end.sensor == name]),
            }
            for name in dict.fromkeys([*verdict["mix"], verdict["target"]])
            if name in named
        ],
        "missing": ", ".join(missing),
        "lines": bool(ends),
        "plateau": f"{100 * PLATEAU:g}",
    }


def _learned(ends: Sequence[Learned]) -> list[str]:
    """What the arms learned on one sensor beside linear interpolation, a sentence per kind of ending."""

    def which(chosen: Callable[[Learned], bool]) -> str:
        told = []
        for arm in ARMS:
            runs = [end for end in ends if end.arm == arm]
            those = [end.loss for end in runs if chosen(end)]
            if those:
                share = f"{len(those)} of {len(runs)}"
                told.append(f"{ARMS[arm]} ({share} at {float(np.mean(those)):.2f})")
        return ", ".join(told)

    kinds = {
        "Below the line": which(lambda end: end.passed),
        "Learned no more than linear interpolation": which(
            lambda end: not end.passed and not end.plateau
        ),
        "Did not leave the plateau": which(lambda end: not end.passed and end.plateau),
    }
    return [f"{kind}: {arms}." for kind, arms in kinds.items() if arms]


def _reconstructions(study: Study, most: int = 4) -> list[dict[str, Any]]:
    """Up to ``most`` samples per sensor as original, masked and reconstructed image."""
    shown = []
    for name, images in study.reconstructions.items():
        shown.append(
            {
                "sensor": name,
                "title": _title(name),
                "display": _display(name, images.shape[-1]),
                "rows": [
                    [
                        {"source": png(image), "alt": f"{name}, sample {number}, {kind}"}
                        for kind, image in zip(
                            ("original", "masked", "reconstructed"), sample, strict=True
                        )
                    ]
                    for number, sample in enumerate(images[:most], start=1)
                ],
            }
        )
    return shown


def _display(sensor: str, channels: int) -> str:
    """How a sensor's pixels became colours."""
    bands = CATALOG[sensor].bands if sensor in CATALOG else ()
    visible = [(b.wavelength_um, b.name) for b in bands if b.wavelength_um and b.group == "visible"]
    if channels == 1:
        radar = any(band.polarisation for band in bands)
        return "backscatter in grey, bright is strong" if radar else "one band in grey"
    if not visible:
        return "three channels as red, green and blue"
    nearest = [
        min(visible, key=lambda band: abs(band[0] - colour))[1] for colour in (0.65, 0.56, 0.48)
    ]
    return f"{', '.join(nearest)} as red, green and blue"


def _context(study: Study) -> dict[str, Any]:
    verdict = study.verdict
    ledger, residual = _ledger(study), verdict.get("identity_residual")
    edge = study.scores["edge"].astype(bool) if "edge" in study.scores else pd.Series(dtype=bool)
    reasons: dict[str, list[str]] = {}
    for estimate in verdict["estimates"]:
        if estimate["why"]:
            reasons.setdefault(estimate["why"], []).append(estimate["symbol"])
    correlation = {
        pair.replace("~", " and "): f"{rho:+.2f}".replace("-", MINUS)
        for pair, rho in verdict.get("correlation", {}).items()
        if rho is not None
    }
    return {
        "light": LIGHT,
        "dark": DARK,
        "names": ARMS,
        "verdict": verdict,
        "target": _title(verdict["target"]),
        "facts": {
            "target": verdict["target"],
            "mix": "+".join(verdict["mix"]),
            "data": verdict["data"],
            "budget": verdict["budget"],
            "samples": f"{count(verdict['unique'])} unique, {count(verdict['seen'])} shown",
            "replicates": str(verdict["replicates"]),
            "seed": str(verdict["seed"]),
        },
        "margin": f"{100 * verdict['margin']:g}",
        "confidence": f"{100 * verdict['confidence']:g}",
        "forest_wide": Markup(forest(verdict)),
        "forest_narrow": Markup(forest(verdict, width=344)),
        "estimates": _estimates(verdict),
        "reasons": reasons,
        "identity": _identity(verdict),
        "residual": f"to {abs(residual):.0e}" if residual else "exactly",
        "correlation": correlation,
        "superiority": f"{100 * verdict['superiority']:.0f}" if "superiority" in verdict else "",
        "arms": _arms(verdict, ledger),
        "tasks": _tasks(study),
        "floors": _floors(verdict),
        "edges": f"{int(edge.sum())} of {len(edge)}" if edge.any() else "",
        "curves": _curves(study),
        "reconstructions": _reconstructions(study),
        "ledger": ledger,
        "spread": _spread(ledger),
        "config": study.config,
        "command": verdict.get("command") or "",
    }


def render(folder: Path) -> Path:
    """Write ``report.html`` into a study's folder, from what the study wrote there.

    Returns:
        The file's path. It appears whole or not at all.

    Raises:
        ValueError: if the folder is no finished study, or one of its files is damaged.
    """
    study = Study.read(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        context = _context(study)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: its tables do not fit together ({type(error).__name__}: {error}); "
            "run the study again"
        ) from error
    page = environment.get_template("report.html.j2").render(context)
    path = folder / NAME
    draft = folder / f".{NAME}.{os.getpid()}"
    try:
        draft.write_text(page, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m gfmsum.report FOLDER``: render a study's report again."""
    parser = argparse.ArgumentParser(prog="python -m gfmsum.report", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="what a study wrote, verdict.json and tables")
    try:
        print(render(parser.parse_args(arguments).folder))
    except (ValueError, OSError) as error:
        print(f"gfmsum.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
