"""Verdicts in words and as plain tables, in points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gfmsum.verdict.design import CHANGED, Design, Estimate, Kind, Verdict

if TYPE_CHECKING:
    from gfmsum.verdict.estimands import ExchangeRate, Quantity
    from gfmsum.verdict.panel import Panel


def points(utility: float | None, sign: str = "+") -> str:
    """Utility in points, with a true minus; what rounds to zero has no sign."""
    if utility is None:
        return "n/a"
    text = f"{100 * utility:{sign}.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def side(e: Estimate) -> str:
    """The kind, with a difference that is real but too small to matter spelled out."""
    side = Kind.MORE if e.value > 0 else Kind.LESS
    return f"{e.kind} ({side}, but negligible)" if e.negligible else str(e.kind)


def sentence(e: Estimate, design: Design, replicates: Sequence[int]) -> str:
    """The substitution in words."""
    plural = "" if replicates == [1] else "s"
    text = (
        f"{side(e).capitalize()}: with {' to '.join(map(str, replicates))} replicate{plural}, "
        f"pretraining on {'+'.join(design.mix)} instead of {design.target} alone changed the score "
        f"on {design.target}'s tasks by {points(e.value)} points"
    )
    if e.low is not None:
        interval = f"{points(e.low)} to {points(e.high)}"
        text += f" ({100 * design.confidence:g} % interval {interval})"
    if e.kind is Kind.UNDECIDED and e.mde is not None:
        text += f"; an effect below {points(e.mde, '')} points is too small for this design to see"
    if e.kind is Kind.EQUAL:
        text += f"; differences within ±{points(design.margin, '')} points count as equal"
        if e.mde is not None:
            text += f", and one of {points(e.mde, '')} would have been detected with 80 % power"
    return f"{text}; {e.why}." if e.why else f"{text}."


def table(verdict: Verdict) -> str:
    """Arms, estimates and the identity as aligned plain text, in points, for a terminal."""
    lines = ["arm       utility ± SD   replicates"]
    for arm, u in verdict.arms.items():
        n = len(u["replicates"])
        spread = points(float(np.std(u["replicates"], ddof=1)) if n > 1 else None, "")
        lines.append(f"{arm:6}{points(u['utility'], ''):>8} ± {spread:<5}   {n}")
    interval = f"{100 * verdict.confidence:g} % interval"
    lines += [
        "",
        f"{'contrast':16}{'points':>8}  {interval:18}{'p':>7}{'adj. p':>8}{'MDE':>7}  kind",
    ]
    lines += [
        f"{e.symbol + ' ' + e.name + '*' * e.exploratory:16}{_numbers(e)}"
        for e in verdict.estimates
    ]
    for why in dict.fromkeys(e.why for e in verdict.estimates if e.why):
        lines.append(f"{', '.join(e.symbol for e in verdict.estimates if e.why == why)}: {why}")
    if any(e.exploratory for e in verdict.estimates):
        lines += ["* exploratory: p adjusted after Benjamini and Hochberg, not Holm"]
    known = {pair: rho for pair, rho in verdict.correlation.items() if rho is not None}
    if known:
        each = ", ".join(f"{pair} {rho:+.2f}".replace("-", "−") for pair, rho in known.items())
        lines += [f"correlation of replicates: {each}"]
    lines += [f"a mix run beats a solo run in {verdict.superiority:.0%} of their pairs"]
    lines += [f"design {verdict.design}"]
    if verdict.changed:
        lines += [f"not the recorded {verdict.recorded}: {CHANGED}"]
    if verdict.identity_residual is not None:
        value = {e.name: f"{100 * e.value:+.2f}".replace("-", "−") for e in verdict.estimates}
        lines += [
            f"identity Δ = α − δ: {value['substitution']} = {value['addition']} − "
            f"({value['dilution']}), residual {abs(verdict.identity_residual):.0e}"
        ]
    return "\n".join(lines)


def panel_table(panel: Panel) -> str:
    """All targets and what is said of them together as aligned plain text, in points."""
    verdicts = panel.verdicts.values()
    width = max(map(len, [*panel.verdicts, "Ψ* mix − solos*"]))
    interval = f"{100 * next(iter(verdicts)).confidence:g} % interval"
    lines = [
        f"{'Δ of target':{width}}{'points':>8}  {interval:18}{'p':>7}{'adj. p':>8}{'MDE':>7}  kind"
    ]
    reasons: dict[str, list[str]] = {}
    for target, verdict in panel.verdicts.items():
        headline = next(e for e in verdict.estimates if e.name == "substitution")
        lines.append(f"{target:{width}}{_numbers(headline)}")
        for e in verdict.estimates:
            reasons.setdefault(e.why, []).append(f"{e.symbol} of {target}")
    for total, name in ((panel.psi, "Ψ  mix − parts"), (panel.strict, "Ψ* mix − solos*")):
        if total is not None:
            lines.append(f"{name:{width}}{_numbers(total)}")
            reasons.setdefault(total.why, []).append(total.symbol)
    lines += [f"{', '.join(names)}: {why}" for why, names in reasons.items() if why]
    if panel.exchange:
        lines += ["", "x: own samples that one foreign sample is worth"]
        lines += [f"  {target}: {_rate(x)}" for target, x in panel.exchange.items()]
    for title, family in (
        ("T: gain from pretraining on another sensor, over the target's own", panel.transfer),
        ("synergy: Shapley values and interactions, in points", panel.synergy),
        ("distance law: T, or points of Δ in mixes of two, per unit of ln distance", panel.law),
    ):
        lines += ["", f"{title}*"] if family else []
        for name, quantity in family.items():
            bare = family is panel.transfer or name.startswith("T")
            lines.append(f"  {name}: {_quantity(quantity, 1 if bare else 100)}")
    lines += ["", "* exploratory: p adjusted after Benjamini and Hochberg; p of Δ after Holm"]
    lines += [f"absent: {name}: {why}" for name, why in panel.absent.items()]
    lines += [f"design {panel.design}"]
    if panel.changed:
        lines += [f"not the recorded {panel.recorded}: {CHANGED}"]
    return "\n".join(lines)


def _numbers(e: Estimate) -> str:
    """Points, interval, both p, minimum detectable effect and kind, in columns."""
    reach = "n/a" if e.low is None else f"{points(e.low)} to {points(e.high)}"
    return (
        f"{points(e.value):>8}  {reach:18}{_p(e.p):>7}{_p(e.p_adjusted):>8}{points(e.mde, ''):>7}"
        f"  {side(e)}"
    )


def _p(p: float | None) -> str:
    return "n/a" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _quantity(q: Quantity, factor: float) -> str:
    """A number with its interval and adjusted p, or why there is none."""
    if q.value is None:
        return q.why
    value, *ends = (None if x is None else f"{factor * x:+.3g}" for x in (q.value, q.low, q.high))
    text = f"{value}" if None in ends else f"{value} ({ends[0]} to {ends[1]})"
    text += "" if q.p_adjusted is None else f", adj. p {_p(q.p_adjusted)}"
    return (f"{text}; {q.why}" if q.why else text).replace("-", "−")


def _rate(x: ExchangeRate) -> str:
    value, low, high = (
        end if end is None else f"{end} the curve" if isinstance(end, str) else f"{end:.2f}"
        for end in (x.value, x.low, x.high)
    )
    text = "none" if value is None else str(value)
    text += "" if low is None else f" ({low} to {high})"
    text += (
        "" if x.own_equivalent is None else f"; the mix does as {x.own_equivalent:.0f} own samples"
    )
    return f"{text}; {x.why}" if x.why else text
