"""Judge anybody's scores: more, less, equal or undecided.

    python -m gfmsum.verdict SCORES [PREDICTIONS] target=s1 mix=s1+s2 [key=value ...]
    python -m gfmsum.verdict STUDY STUDY ... target=all mix=s1+s2 [key=value ...]

  SCORES                a Parquet or CSV file, or a folder with scores.parquet
  PREDICTIONS           the same; default predictions.parquet beside the scores. Without any, the
                        interval carries runs but not places, and the verdict says so
  STUDY                 folders with scores.parquet and predictions.parquet, judged as one table
  target=s1             sensor whose tasks are scored; several (s1+s2), or all of the mix, are judged
                        as one family, with Ψ, transfer, exchange rate, synergy and distance law as
                        far as the runs allow
  mix=s1+s2             sensors of the mix arm, by name
  margin=0.01           utility within which arms count as equal; 0.01 is one point
  confidence=0.95       of the intervals
  contrasts=substitution+addition+dilution    those to judge; default all three
  tasks=a+b             tasks that an arm's utility is the mean over; default all of the target's
  recorded=HEX          the design's fingerprint as written down before the runs
  json=PATH             where to write the verdict

Columns of SCORES, one row per run and task; others are ignored:

  arm        text    solo, share, mix or floor; part (its share of samples and of compute) for Ψ;
                     own (more samples than share, fewer than solo) for the exchange rate; any
                     other name is a baseline, shown but not judged
  replicate  any     which independent pretraining of the arm
  sensor     text    whose task it is; rows of other sensors than the target are ignored
  task       text
  metric     text    more must be better
  value      number  of the metric, in its own unit
  floor      number  the metric's value that is utility 0: an answer that ignores the image
  ceiling    number  the metric's value that is utility 1; both the same in all rows of a task
  utility    number  optional: (value - floor) / (ceiling - floor)
  n_test     number  optional: test items
  labels     number  optional: that the probe was fitted on, 0 for all; the report groups rows of one
                     task, whose names are TASK and, with 10 labels, TASK@10
  sees       text    optional: sensors the run was pretrained on, like s1+s2. With it, runs of other
                     sensors and of other mixes may stand in the table, for all that needs them
  samples    number  optional: distinct samples that the run was pretrained on

Columns of PREDICTIONS, one row per run, task and test item, the same items in every run:

  arm, replicate, task   as in SCORES; sees too, if the table holds runs of other sensors
  item          any     name of the test item
  cluster       any     its place: items of one place are not independent. The same name in two
                        tasks is the same place
  contribution  number  utility that the item adds; its mean over a task's items is the utility

Exit codes: 0 for any verdict, 2 for words or files that cannot be used.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfmsum.sensors import unknown
from gfmsum.verdict.design import CONTRASTS, Design
from gfmsum.verdict.tables import read_all
from gfmsum.words import command, read_number

if TYPE_CHECKING:
    import pandas as pd

    from gfmsum.verdict.panel import Distances

OPTIONS = ("target", "mix", "margin", "confidence", "contrasts", "tasks", "recorded", "json")


def read_designs(values: Mapping[str, str]) -> list[Design]:
    """One design for each target that command-line words ask for."""
    for key, example in (("target", "target=s1"), ("mix", "mix=s1+s2")):
        if key not in values:
            raise ValueError(f"{key} is missing; name it, like {example}")
    mix = tuple(values["mix"].split("+"))
    if not all(mix) or values["mix"].split("-")[0] == "all":
        raise ValueError(f"mix={values['mix']} must name its sensors, like mix=s1+s2")
    targets = mix if values["target"] == "all" else values["target"].split("+")
    known = {contrast.name: contrast for contrast in CONTRASTS}
    names = values["contrasts"].split("+") if "contrasts" in values else list(known)
    for name in names:
        if name not in known:
            raise ValueError(unknown("contrast", name, known))
    numbers: dict[str, Any] = {
        key: read_number(key, values[key], 1) for key in ("margin", "confidence") if key in values
    }
    contrasts = tuple(known[name] for name in names)
    return [Design(target, mix, contrasts=contrasts, **numbers) for target in targets]


def with_tasks(
    designs: Sequence[Design], names: Sequence[str], scores: pd.DataFrame
) -> list[Design]:
    """The designs, each with those of the named tasks that are its target's."""
    held = {d.target: set(scores.loc[scores["sensor"] == d.target, "task"]) for d in designs}
    for name in names:
        if name not in (known := set[str]().union(*held.values())):
            raise ValueError(unknown("task", name, known))
    named = {target: tuple(n for n in names if n in tasks) for target, tasks in held.items()}
    for target, tasks in named.items():
        if held[target] and not tasks:
            raise ValueError(
                f"tasks={'+'.join(names)} names none of {target}; add one, or leave it out"
            )
    return [replace(design, tasks=named[design.target]) for design in designs]


def far_apart(mix: Sequence[str]) -> Distances:
    """Distances between those sensors of a mix whose physics is known."""
    from gfmsum.catalog import CATALOG
    from gfmsum.distance import distances

    pairs = distances(CATALOG[name] for name in mix if name in CATALOG)
    return {frozenset((p.a, p.b)): {"spectral": p.spectral, "GSD": p.gsd} for p in pairs}


def answer(files: Sequence[str], values: Mapping[str, str]) -> str:
    """The verdict that command-line words ask for, as text.

    Raises:
        ValueError: one line with value, rule and remedy.
    """
    if not files:
        raise ValueError("no SCORES given: name a file or a folder; see --help")
    designs, recorded = read_designs(values), values.get("recorded")
    if recorded and not re.fullmatch("[0-9a-f]{16}", recorded):
        raise ValueError(f"recorded={recorded} must be a fingerprint: 16 hexadecimal digits")
    scores, predictions = read_all([Path(file) for file in files])
    sensors = set(scores["sensor"].dropna())
    for design in designs:
        if design.target not in sensors and values["target"] != "all":
            raise ValueError(unknown("target", design.target, sensors))
    if "tasks" in values:
        designs = with_tasks(designs, values["tasks"].split("+"), scores)
    from gfmsum.verdict.judging import judge
    from gfmsum.verdict.text import panel_table, table

    if len(designs) == 1:
        verdict = judge(scores, designs[0], predictions, recorded)
        found, sentence, text = verdict.as_dict(), verdict.sentence, table(verdict)
    else:
        from gfmsum.verdict.panel import judge_all

        distances = far_apart(designs[0].mix)
        panel = judge_all(scores, designs, predictions, recorded, distances=distances)
        found, sentence, text = panel.as_dict(), panel.sentence, panel_table(panel)
    if "json" in values:
        from gfmsum.store import to_json, write_text

        write_text(Path(values["json"]), to_json(found))
    return f"{text}\n\n{sentence}"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return command(arguments, __doc__, OPTIONS, answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
