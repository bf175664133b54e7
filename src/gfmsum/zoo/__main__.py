"""Encoders of other people, and floors, that can be probed like our own.

    python -m gfmsum.zoo [sensor=s1]
    python -m gfmsum.zoo NAME ...

Without a name: a table of all entries, with parameters, the sensors of the catalog whose images each
accepts (those in brackets only with missing=zero), whether its weights are on this machine, and the source.
Any vision transformer of timm's is an entry too, as timm/MODEL.

With names: what each makes of wavelengths, radar, pixel size, image size and scale, where its weights
lie or the command that fetches them, and its options.

  sensor=s1     only entries that accept this sensor

In Python: gfmsum.zoo.load("dofa_base", weights="random"). Exit codes: 0, or 2 for words that cannot be used.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gfmsum.catalog import CATALOG
from gfmsum.sensors import unknown
from gfmsum.words import command
from gfmsum.zoo import recipe_of
from gfmsum.zoo.cards import ENTRIES, Entry, Options, entry

if TYPE_CHECKING:
    from torch import nn

OPTIONS = ("sensor",)
_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Look:
    """What can be said of an entry without its weights."""

    parameters: str = "?"
    accepts: tuple[
        str, ...
    ] = ()  # sensors with all their bands; in brackets those only with missing=zero
    here: str = "?"  # whether its weights are: yes, no, or - where none are published
    where: str = ""  # they lie, or the command that fetches them, or why nothing can be said

    @property
    def accepted(self) -> str:
        absent = [name for name in CATALOG if name not in self.accepts]
        if not absent:
            return "any"
        if len(absent) < 4 and not any(name.startswith("(") for name in self.accepts):
            return f"all but {' '.join(absent)}"
        return " ".join(self.accepts) or "?"


def look(found: Entry) -> Look:
    """Without weights, and so in little time and memory."""
    try:
        made = recipe_of(found)
    except ValueError as error:
        return Look(where=str(error).partition(": ")[2])
    here, where = "-", "none are published"
    if made.published:
        path = made.published.on_this_machine()
        here, where = ("yes", str(path)) if path else ("no", made.published.how)
    drawn = made.sketch(Options())
    strict = [name for name in CATALOG if _accepts(drawn, name)]
    if drawn is not None and "missing" in found.family.takes:
        drawn.missing = "zero"
    loose = [f"({name})" for name in CATALOG if name not in strict and _accepts(drawn, name)]
    count = "?" if drawn is None else f"{sum(p.numel() for p in drawn.parameters()) / 1e6:.1f} M"
    return Look(count, (*strict, *loose), here, where)


def _accepts(drawn: nn.Module | None, sensor: str) -> bool:
    """Whether a model has a use for all bands of a sensor; our own has for any."""
    check = getattr(drawn, "check", None)
    if check is None:
        return True
    try:
        check(CATALOG[sensor].bands)
    except ValueError:
        return False
    return True


def table(wanted: str | None) -> str:
    """All entries, or those that accept a sensor."""
    rows = [("name", "parameters", "weights here", "accepts", "source")]
    reason = ""
    for found in ENTRIES.values():
        seen = look(found)
        if seen.here == "?":
            reason = f"{found.name.partition('/')[0]}/...: {seen.where}"
        elif wanted and wanted not in [name.strip("()") for name in seen.accepts]:
            continue
        rows.append((found.name, seen.parameters, seen.here, seen.accepted, found.source))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", reason] if reason else lines)


def card(found: Entry) -> str:
    """What is known of one entry."""
    seen = look(found)
    facts = {
        "source": found.source,
        "parameters": seen.parameters,
        "weights": f"on this machine: {seen.where}" if seen.here == "yes" else seen.where,
        "accepts": seen.accepted,
        **found.family.facts,
        "options": ", ".join(("weights", "seed", *found.family.takes)),
    }
    lines = [found.name]
    for subject, text in facts.items():
        start, rest = f"  {subject:<14}", " " * 16
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=start, subsequent_indent=rest,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return "\n".join(lines)


def answer(names: Sequence[str], values: Mapping[str, str]) -> str:
    """The table, or the cards of some entries."""
    sensor = values.get("sensor")
    if sensor is not None and sensor not in CATALOG:
        raise ValueError(unknown("sensor", sensor, CATALOG))
    if names and sensor:
        raise ValueError("sensor= filters the table; leave it out, or the names")
    if not names:
        return table(sensor)
    return "\n\n".join(card(found) for found in [entry(name) for name in names])


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return command(arguments, __doc__, OPTIONS, answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
