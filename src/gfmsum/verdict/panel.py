"""The whole design: every target judged as one family, and what can be said of all together."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from gfmsum.records import Role, fingerprint, plain
from gfmsum.verdict.design import CHANGED, Design, Estimate, Verdict
from gfmsum.verdict.estimands import (
    Claim,
    ExchangeRate,
    Quantity,
    distance_law,
    exchange_rate,
    headline,
    synergy,
    transfer,
)
from gfmsum.verdict.judging import conclude, decide, estimates, infer, read
from gfmsum.verdict.text import points
from gfmsum.verdict.variance import Floats, Measured, generalist, together

if TYPE_CHECKING:
    import pandas as pd

Distances = Mapping[frozenset[str], Mapping[str, float]]
"""Of pairs of sensors: each kind of distance by name."""


@dataclass(frozen=True, slots=True)
class Panel:
    """What a study of several targets found. What could not be estimated is in ``absent``, with why."""

    sentence: str
    claim: Claim  # more than the sum of its parts
    verdicts: Mapping[str, Verdict]  # by target, adjusted as one family
    psi: Estimate | None  # Ψ: one generalist against specialists of the same total
    strict: Estimate | None  # Ψ*: mean of the Δ
    exchange: Mapping[str, ExchangeRate]  # x by target
    transfer: Mapping[str, Quantity]  # T by "a→s"; exploratory, like all that follows
    synergy: Mapping[str, Quantity]  # "s: a" Shapley value of a for target s, "s: a×b" interaction
    law: Mapping[str, Quantity]  # "Δ: spectral", "T: gsd": slopes
    absent: Mapping[str, str]
    design: str  # fingerprint of the family of designs
    recorded: str | None = None

    @property
    def changed(self) -> bool:
        """Whether it was judged by another design than the recorded one."""
        return self.recorded not in (None, self.design)

    def as_dict(self) -> dict[str, Any]:
        """JSON types only, without NaN or infinity."""
        return dict(plain(self))


class _Utilities:
    """Mean over a target's tasks, by what each run was pretrained on."""

    def __init__(self, scores: pd.DataFrame, designs: Sequence[Design]) -> None:
        whole = {str(Role.MIX): together(designs[0].mix), str(Role.FLOOR): ""}
        self._runs: dict[tuple[str, str, str], dict[Any, list[float]]] = {}
        self._own: dict[str, dict[int, dict[Any, list[float]]]] = {}
        counted = [
            (scores["sensor"] == design.target)
            & (scores["task"].isin(design.tasks) if design.tasks else True)
            for design in designs
        ]
        rows = scores[scores["arm"].isin(list(Role)) & np.logical_or.reduce(counted)]
        tasks = rows.groupby("sensor")["task"].nunique()
        sees = rows["sees"] if "sees" in rows else [None] * len(rows)
        samples = rows["samples"] if "samples" in rows else [math.nan] * len(rows)
        columns = (rows["sensor"], rows["arm"], sees, samples, rows["replicate"], rows["utility"])
        for target, arm, names, n, replicate, utility in zip(*columns, strict=True):
            known = isinstance(names, str)
            seen = together(names.split("+")) if known else whole.get(arm, target)
            runs = [self._runs.setdefault((target, arm, seen), {})] if arm != Role.OWN else []
            if arm in (Role.SHARE, Role.OWN, Role.SOLO) and seen == target and n == n:
                runs.append(self._own.setdefault(target, {}).setdefault(int(n), {}))
            for of in runs:
                of.setdefault(replicate, []).extend([utility] if math.isfinite(utility) else [])
        self._tasks = {str(target): int(count) for target, count in tasks.items()}
        self.incomplete = [
            f"{arm} of {seen or 'nothing'} on {target}, replicate {replicate!r}"
            for (target, arm, seen), runs in self._runs.items()
            for replicate, u in runs.items()
            if len(u) != self._tasks[target]
        ]

    def _means(self, target: str, runs: Mapping[Any, list[float]]) -> Floats:
        """Of the runs that were probed once on every task, in the order of their names."""
        done = {r: u for r, u in runs.items() if len(u) == self._tasks[target]}
        return np.array([np.mean(done[replicate]) for replicate in sorted(done, key=str)])

    def of(self, target: str, sees: Iterable[str], arm: Role | None = None) -> Floats | None:
        """(r,) of the runs at full budget that saw these sensors; None if there are none."""
        seen = together(sees)
        role = arm or (Role.FLOOR if not seen else Role.MIX if "+" in seen else Role.SOLO)
        found = self._means(target, self._runs.get((target, str(role), seen), {}))
        return found if len(found) else None

    def own(self, target: str) -> dict[int, Floats]:
        """The own-only curve: utilities by number of own samples."""
        curve = {n: self._means(target, runs) for n, runs in self._own.get(target, {}).items()}
        return {n: u for n, u in curve.items() if len(u)}


def judge_all(
    scores: pd.DataFrame,
    designs: Sequence[Design],
    predictions: pd.DataFrame | None = None,
    recorded: str | None = None,
    *,
    distances: Distances | None = None,
    seed: int = 0,
) -> Panel:
    """Judge several targets of one mix: Holm over all their Δ, one test of Ψ, and the exploratory rest.

    Args:
        scores: as :func:`~gfmsum.verdict.judge` takes them, of all targets. ``sees`` names what each
            run was pretrained on, and ``samples`` how many distinct ones: without these, transfer,
            synergy, exchange rate and distance law are absent.
        designs: one for each target, with the same mix, margin, confidence and contrasts.
        predictions: test items of the targets' tasks.
        recorded: fingerprint of the family of designs as written down before the runs, if it was.
        distances: of the sensors' pairs, for the distance law.
        seed: of the exchange rate's draws.

    Raises:
        ValueError: for no design, two of one target, designs of different families, or if no target
            can be judged.
    """
    first = _check(designs)
    utilities = _Utilities(scores, designs)
    measured, own, absent = dict[str, Measured](), dict[str, Any](), dict[str, str]()
    for design in designs:
        try:
            own[design.target], measured[design.target] = read(scores, predictions, design)
        except ValueError as error:
            absent[f"verdict of {design.target}"] = str(error)
    if not measured:
        raise ValueError(next(iter(absent.values())))
    judged = [d for d in designs if d.target in measured]
    rates = _exchange(utilities, judged, seed, absent)
    families = _exploratory(utilities, judged, distances, absent)
    if utilities.incomplete:
        left_out = f"{'; '.join(utilities.incomplete)}: not probed once on every task, so left out"
        absent["runs in transfer, exchange rate and synergy"] = left_out
    found = [e for d in judged for e in estimates(measured[d.target], d)]
    decided, beside = decide(
        found,
        first,
        unknown=(len(designs) - len(judged)) * sum(c.confirmatory for c in first.contrasts),
        beside=[q.p for family in families.values() for q in family.values() if q.p is not None],
    )
    families = _adjusted(families, beside)
    size = len(first.contrasts)
    verdicts = {
        d.target: conclude(
            own[d.target], measured[d.target], d, decided[i * size : (i + 1) * size], None
        )
        for i, d in enumerate(judged)
    }
    psi, strict, lacking = _sums(measured, designs)
    absent |= lacking
    claim = _claim(psi, verdicts, designs, absent)
    panel = Panel(
        sentence=_sentence(psi, strict, claim, first, len(verdicts)),
        claim=claim,
        verdicts=verdicts,
        psi=psi,
        strict=strict,
        exchange=rates,
        transfer=families["transfer"],
        synergy=families["synergy"],
        law=families["law"],
        absent=absent,
        design=fingerprint(sorted(design.fingerprint for design in designs)),
        recorded=recorded,
    )
    if panel.changed:
        return replace(panel, sentence=f"{panel.sentence.removesuffix('.')}; {CHANGED}.")
    return panel


def _adjusted(
    families: Mapping[str, Mapping[str, Quantity]], beside: Iterable[float]
) -> dict[str, dict[str, Quantity]]:
    """The same with adjusted p, in the order of those that have one."""
    adjusted = iter(beside)
    return {
        name: {
            key: q if q.p is None else replace(q, p_adjusted=next(adjusted))
            for key, q in family.items()
        }
        for name, family in families.items()
    }


def _check(designs: Sequence[Design]) -> Design:
    targets = [design.target for design in designs]
    if not targets or len(set(targets)) != len(targets):
        raise ValueError(f"targets {targets} must be unique and one at least; give one design each")
    for design in designs:
        same = replace(design, target=targets[0], mix=designs[0].mix, tasks=designs[0].tasks)
        if same != designs[0] or (together(design.mix) != together(designs[0].mix)):
            raise ValueError(
                f"the designs of {targets[0]} and {design.target} differ in more than the target; "
                "give both the same mix, margin, confidence and contrasts"
            )
    return designs[0]


def _sums(
    measured: Mapping[str, Measured], designs: Sequence[Design]
) -> tuple[Estimate | None, Estimate | None, dict[str, str]]:
    """Ψ and Ψ*, and why they are absent."""
    found: dict[str, Estimate | None] = {"Ψ": None, "Ψ*": None}
    meanings = {
        "Ψ": (Role.PART, "mean of mix − part: one generalist against specialists, in all equal"),
        "Ψ*": (Role.SOLO, "mean of mix − solo over the targets"),
    }
    absent, names = {}, {"Ψ": "sum of the parts", "Ψ*": "strict sum of the parts"}
    for symbol, (role, meaning) in meanings.items():
        lacking = [d.target for d in designs if role not in _arms(measured.get(d.target))]
        if lacking:
            absent[symbol] = (
                f"no scores of arm {str(role)!r} that can be judged on {', '.join(lacking)}"
            )
            continue
        try:
            weights, all_of_them = generalist(measured, role)
        except ValueError as error:
            absent[symbol] = str(error)
            continue
        estimate = Estimate(names[symbol], symbol, meaning, 0.0, exploratory=symbol != "Ψ")
        # Named beforehand and tested once: Ψ is in no family.
        [found[symbol]], _ = decide([infer(estimate, weights, all_of_them, designs[0])], designs[0])
    return found["Ψ"], found["Ψ*"], absent


def _arms(measured: Measured | None) -> Collection[str]:
    return measured.utility if measured else ()


def _claim(
    psi: Estimate | None,
    verdicts: Mapping[str, Verdict],
    designs: Sequence[Design],
    absent: Mapping[str, str],
) -> Claim:
    """Whether the mix is more than the sum of its parts."""
    missing = [d.target for d in designs if d.target not in verdicts]
    if psi is None or missing:
        unknown = [f"Ψ is not known: {absent['Ψ']}"] if psi is None else []
        unknown += [f"{target} could not be judged" for target in missing]
        return Claim(False, "; ".join(unknown))
    deltas = {
        target: next(e for e in verdict.estimates if e.name == "substitution")
        for target, verdict in verdicts.items()
    }
    return headline(psi, deltas, designs[0].margin)


def _sentence(
    psi: Estimate | None, strict: Estimate | None, claim: Claim, design: Design, targets: int
) -> str:
    """The headline in words."""
    start = (
        "More than the sum of its parts"
        if claim.holds
        else "Not shown to be more than the sum of its parts"
    )
    text = f"{start}: pretraining on {'+'.join(design.mix)}, over {targets} target{'s' * (targets != 1)}"
    for e, other in (
        (psi, "as many specialists, equal in total"),
        (strict, "each target's solo runs"),
    ):
        if e is not None:
            reach = "" if e.low is None else f" ({points(e.low)} to {points(e.high)})"
            text += f"; {e.symbol} = {points(e.value)} points{reach} against {other}"
    return f"{text}; {claim.why}." if claim.why else f"{text}."


# Each of these notes in ``absent`` what it could not find, and why.


def _exchange(
    utilities: _Utilities, designs: Sequence[Design], seed: int, absent: dict[str, str]
) -> dict[str, ExchangeRate]:
    """x of each target."""
    found = {}
    for design in designs:
        target, curve = design.target, utilities.own(design.target)
        mix = utilities.of(target, design.mix, Role.MIX)
        if len(curve) < 2 or mix is None:
            absent[f"exchange rate of {target}"] = (
                f"needs share and solo runs with different 'samples'; there are n={sorted(curve)}"
            )
            continue
        found[target] = exchange_rate(curve, mix, seed=seed, confidence=design.confidence)
    return found


type Effects = list[tuple[float, frozenset[str]]]
"""Effects of one sensor on another, with the pair."""


def _exploratory(
    utilities: _Utilities,
    designs: Sequence[Design],
    distances: Distances | None,
    absent: dict[str, str],
) -> dict[str, dict[str, Quantity]]:
    """Transfer, synergy and distance law."""
    moved = _transfer(utilities, designs, absent)
    effects: dict[str, Effects] = {
        "T": [(q.value, frozenset(pair)) for pair, q in moved.items()
              if pair[0] != pair[1] and q.value is not None],
        "Δ": _pair_gains(utilities, designs),
    }  # fmt: skip
    return {
        "transfer": {f"{a}→{s}": quantity for (a, s), quantity in moved.items()},
        "synergy": _synergy(utilities, designs, absent),
        "law": _law(effects, distances, designs[0].confidence, absent),
    }


def _transfer(
    utilities: _Utilities, designs: Sequence[Design], absent: dict[str, str]
) -> dict[tuple[str, str], Quantity]:
    """T by pair of sensors: pretrained on, probed on."""
    solo, floors = dict[tuple[str, str], Floats](), dict[str, Floats]()
    for target in (design.target for design in designs):
        floor, own = utilities.of(target, ()), utilities.of(target, [target])
        others = (a for a in designs[0].mix if a != target)
        foreign = {(a, target): u for a in others if (u := utilities.of(target, [a])) is not None}
        if floor is None or own is None or not foreign:
            why = "needs its floor, and solo runs of another sensor probed on it"
            absent[f"transfer to {target}"] = why
            continue
        floors[target] = floor
        solo |= foreign | {(target, target): own}
    return transfer(solo, floors, designs[0].confidence)


def _pair_gains(utilities: _Utilities, designs: Sequence[Design]) -> Effects:
    """Δ of every mix of the target and one other sensor."""
    gains: Effects = []
    for target in (design.target for design in designs):
        own = utilities.of(target, [target])
        for other in (a for a in designs[0].mix if a != target):
            both = utilities.of(target, [target, other])
            if own is not None and both is not None:
                gains.append((float(both.mean() - own.mean()), frozenset((target, other))))
    return gains


def _synergy(
    utilities: _Utilities, designs: Sequence[Design], absent: dict[str, str]
) -> dict[str, Quantity]:
    """Shapley values and interactions of every target whose mixes are all there."""
    found, mix = dict[str, Quantity](), designs[0].mix
    subsets = [frozenset(c) for size in range(len(mix) + 1) for c in combinations(mix, size)]
    for target in (design.target for design in designs):
        values = {s: u for s in subsets if (u := utilities.of(target, s)) is not None}
        if missing := [s for s in subsets if s not in values]:
            absent[f"synergy on {target}"] = (
                f"needs all {len(subsets)} mixes of {', '.join(mix)} probed on it; {len(missing)} are "
                f"missing, such as {together(missing[0]) or 'the floor'}"
            )
            continue
        try:
            game = synergy(values, designs[0].confidence)
        except ValueError as error:
            absent[f"synergy on {target}"] = str(error)
            continue
        found |= {f"{target}: {a}": quantity for a, quantity in game.shapley.items()}
        found |= {f"{target}: {a}×{b}": q for (a, b), q in game.interactions.items()}
    return found


def _law(
    effects: Mapping[str, Effects],
    distances: Distances | None,
    confidence: float,
    absent: dict[str, str],
) -> dict[str, Quantity]:
    """How T, and Δ in mixes of two, change with distance."""
    found: dict[str, Quantity] = {}
    for effect, pairs in effects.items():
        known = [(y, pair) for y, pair in pairs if pair in (distances or {})]
        if distances is None or not known:
            needs = "mixes of two sensors" if effect == "Δ" else "transfer"
            what = "pairs of sensors with" if distances is None else f"{needs} at"
            absent[f"distance law of {effect}"] = f"needs {what} known distances"
            continue
        kinds = list(distances[known[0][1]])
        columns = {kind: [distances[pair][kind] for _, pair in known] for kind in kinds}
        try:
            law = distance_law([y for y, _ in known], columns, confidence)
        except ValueError as error:
            absent[f"distance law of {effect}"] = str(error)
            continue
        found |= {f"{effect}: {kind}": slope for kind, slope in law.slopes.items()}
    return found
