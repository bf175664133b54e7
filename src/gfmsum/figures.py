"""The figures and numbers of a report: SVG and PNG strings, the same bytes for the same input.

:func:`forest`, :func:`curves` and :func:`dots` draw single figures, also for a notebook. Utilities
and metrics are shown in points: times 100.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gfmsum.sensors import unknown

if TYPE_CHECKING:  # drawing is slow to import, and most callers only want the file's name
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARMS: Mapping[str, str] = {
    "solo": "solo",
    "share": "share",
    "mix": "mix",
    "floor": "random init",
}
"""How the arms are called in figures, in reading order."""

BASELINES = ("random convolutions", "texture", "band statistics", "band means")

# One colour per arm throughout, after Okabe and Ito; the shapes say the same without colour.
LIGHT = {
    "page": "#ffffff",
    "ink": "#1c2430",
    "muted": "#5b6674",
    "rule": "#d6dbe2",
    "band": "#e9edf2",
    "solo": "#0072b2",
    "share": "#009e73",
    "mix": "#d55e00",
    "floor": "#8b929c",
}
DARK = {
    "page": "#14181d",
    "ink": "#e4e8ed",
    "muted": "#9aa5b1",
    "rule": "#343c46",
    "band": "#252c35",
    "solo": "#56b4e9",
    "share": "#35c79b",
    "mix": "#ff8a3d",
    "floor": "#7d8692",
}
MARKERS = {"solo": "o", "share": "s", "mix": "D", "floor": "v"}

MINUS, BLANK, NARROW_SPACE = "\u2212", "\u2013", "\u202f"


# --- numbers as text ---


def points(utility: float | None, digits: int = 1, signed: bool = False) -> str:
    """A utility or metric in points, with a true minus sign; a dash where there is no number."""
    if utility is None or not math.isfinite(utility):
        return BLANK
    # Adding zero turns the negative zero that rounding leaves into a plain one.
    value = round(100 * utility, digits) + 0.0
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None) -> str:
    """Both ends in signed points, or a dash."""
    if low is None or high is None:
        return BLANK
    return f"[{points(low, 2, signed=True)}, {points(high, 2, signed=True)}]"


def probability(p: float | None) -> str:
    """A p value to three digits."""
    if p is None or not math.isfinite(p):
        return BLANK
    return "<\u00a0.001" if p < 0.001 else f"{p:.3f}"


def count(number: float | None) -> str:
    """A whole number, grouped by thousands."""
    return BLANK if number is None else f"{round(number):,}".replace(",", NARROW_SPACE)


def quantity(number: float | None) -> str:
    """Three significant digits, but no more than three decimals, grouped by thousands."""
    if number is None or not math.isfinite(number):
        return BLANK
    digits = 0 if number == 0 else min(3, max(0, 2 - math.floor(math.log10(abs(number)))))
    return f"{number:,.{digits}f}".replace(",", NARROW_SPACE).replace("-", MINUS)


def outcome(estimate: Mapping[str, Any]) -> str:
    """The verdict on one contrast, in words."""
    kind = str(estimate["kind"])
    if estimate.get("negligible"):
        return f"{kind} ({'more' if estimate['value'] > 0 else 'less'}, but negligible)"
    return kind


def compared(estimate: Mapping[str, Any]) -> tuple[str, str]:
    """What a contrast subtracts ("mix − solo") and what that means, from its ``meaning``."""
    difference, _, meaning = str(estimate["meaning"]).partition(":")
    return difference.strip(), meaning.strip()


# --- drawing ---


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many CSS pixels, and the style to draw on it with."""
    from matplotlib.figure import Figure
    from matplotlib.style import context

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "gfmsum",
        "text.parse_math": False,  # a task's name may hold a dollar
        "font.family": ["DejaVu Sans"],
        "font.size": 12,
        "text.color": LIGHT["ink"],
        "axes.unicode_minus": True,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.edgecolor": LIGHT["rule"],
        "axes.facecolor": "none",
        "axes.labelcolor": LIGHT["muted"],
        "axes.labelsize": 11,
        "axes.axisbelow": True,
        "xtick.color": LIGHT["rule"],
        "xtick.labelcolor": LIGHT["muted"],
        "xtick.labelsize": 11,
        "xtick.major.size": 4,
        "xtick.major.pad": 5,
        "ytick.labelcolor": LIGHT["muted"],
        "ytick.labelsize": 11,
        "ytick.major.size": 0,
        "ytick.major.pad": 10,
        "figure.facecolor": "none",
        "lines.solid_capstyle": "round",
        "path.simplify": False,
    }
    # Reset first: what a notebook or a matplotlibrc has set must not change the figure.
    with context(style, after_reset=True):
        # At 72 units an inch, the SVG's units are CSS pixels.
        yield Figure(figsize=(width / 72, height / 72), dpi=72)


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes of so many pixels, placed from the figure's upper left corner."""
    whole_width, whole_height = (72 * side for side in figure.get_size_inches())
    return figure.add_axes(
        (
            left / whole_width,
            1 - (top + height) / whole_height,
            width / whole_width,
            height / whole_height,
        )
    )


def _svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element for inline use: the page's colours and fonts, ids of its own."""
    import warnings

    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text and the browser has the glyphs; the font here only measures it.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = buffer.getvalue()
    own = hashlib.sha256(drawn.encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', drawn))
    tokens = {colour: f"var(--{name}, {colour})" for name, colour in LIGHT.items()}

    def restyle(style: str) -> str:
        style = re.sub(r"(font-family: |font: [^;]*px )[^;]*", r"\1var(--sans, sans-serif)", style)
        style = re.sub(r"#[0-9a-f]{6}\b", lambda m: tokens.get(m[0], m[0]), style)
        return style.replace("url(#", f"url(#{own}-")

    def shorten(numbers: str) -> str:
        return re.sub(
            r"-?\d+\.\d+(?:e-?\d+)?", lambda m: f"{round(float(m[0]), 2) + 0.0:g}", numbers
        )

    def clean(element: ElementTree.Element) -> None:
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                if value in used:
                    element.set("id", f"{own}-{value}")
            elif key == "href":
                element.set("href", value.replace("#", f"#{own}-", 1))
            elif key == "style":
                element.set("style", restyle(value))
            elif key in ("clip-path", "fill", "stroke"):
                element.set(key, restyle(value))
            elif not value.startswith("rotate(-0 "):
                element.set(key, shorten(value) if key in ("d", "x", "y", "transform") else value)
        for child in list(element):
            # A style element would apply to the whole page that the figure stands in.
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                element.remove(child)
            else:
                clean(child)

    root = ElementTree.fromstring(drawn)
    clean(root)
    width, height = (72 * side for side in figure.get_size_inches())
    viewed = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update(
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": viewed,
            "width": f"{width:g}",
            "height": f"{height:g}",
            "role": "img",
            "aria-label": description,
            "style": "stroke-linejoin: round; stroke-linecap: butt",
        }
    )
    return ElementTree.tostring(root, encoding="unicode")


def _span(values: Iterable[float], pad: float) -> tuple[float, float]:
    """The values' range, widened by a share of itself at both ends."""
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    room = pad * (high - low) or 1.0
    return low - room, high + room


def forest(verdict: Mapping[str, Any], width: int = 760) -> str:
    """The three contrasts with their intervals, in points, as an SVG string.

    Shaded: the margin inside which a difference counts as equal. Faint dots: the difference within
    each replicate. Thin bracket: the minimum detectable effect either side of zero.

    Args:
        verdict: what verdict.json holds.
        width: CSS pixels; below 560 the labels stand above the intervals.
    """
    estimates = verdict["estimates"]
    wide = width >= 560
    pitch, above, below = (64, 26, 48) if wide else (104, 4, 48)
    left, right = (176, 128) if wide else (6, 6)
    plot_width, plot_height = width - left - right, pitch * len(estimates)
    margin = 100 * verdict["margin"]
    centre = 0.5 if wide else 0.70  # of the interval, within its row from the top

    marks: list[float] = [-margin, margin]
    for estimate in estimates:
        marks += [100 * d for d in _differences(verdict, estimate)]
        marks += [100 * estimate[k] for k in ("value", "low", "high") if estimate[k] is not None]
        if estimate["mde"] is not None:
            marks += [-100 * estimate["mde"], 100 * estimate["mde"]]

    with _figure(width, above + plot_height + below) as figure:
        axes = _axes(figure, left, above, plot_width, plot_height)
        axes.set_xlim(*_span(marks, 0.06))
        axes.set_ylim(len(estimates), 0)
        axes.set_yticks([])
        if wide:
            axes.text(
                0, -8 / pitch, f"\u00b1{margin:g} margin",
                ha="center", va="baseline", fontsize=11, color=LIGHT["muted"],
            )  # fmt: skip

        def beside(x_px: float, y: float, text: str, **style: Any) -> None:
            """Text at a distance from the figure's left edge, at a row's height."""
            x = (x_px - left) / plot_width
            axes.text(x, y, text, transform=axes.get_yaxis_transform(), **style)

        for row, estimate in enumerate(estimates):
            y = row + centre
            strong = row == 0
            difference, _ = compared(estimate)
            top = row if wide else row + 50 / pitch  # clear of the labels above the interval
            axes.fill(
                [-margin, margin, margin, -margin], [top, top, row + 1, row + 1],
                color=LIGHT["band"], linewidth=0, zorder=0,
            )  # fmt: skip
            axes.plot([0, 0], [top, row + 1], color=LIGHT["muted"], linewidth=1, zorder=1)
            if row:
                # Over the whole width, so that labels and numbers belong to their interval.
                axes.axhline(
                    row, xmin=-left / plot_width, xmax=1 + right / plot_width,
                    color=LIGHT["rule"], linewidth=0.8, clip_on=False,
                )  # fmt: skip
            if estimate["low"] is not None:
                ends = [100 * estimate["low"], 100 * estimate["high"]]
                axes.plot(ends, [y, y], color=LIGHT["ink"], linewidth=2.6 if strong else 1.6)
            axes.plot(
                [100 * estimate["value"]], [y], linestyle="none", marker="o",
                markersize=9 if strong else 7,
                color=LIGHT["ink"], markeredgecolor=LIGHT["page"], markeredgewidth=1.4,
            )  # fmt: skip
            each = [100 * d for d in _differences(verdict, estimate)]
            axes.plot(
                each, [y + 11 / pitch] * len(each), linestyle="none", marker="o", markersize=3.6,
                color=LIGHT["muted"], alpha=0.7, markeredgewidth=0,
            )  # fmt: skip
            if estimate["mde"] is not None:
                reach, base, tick = 100 * estimate["mde"], y - 12 / pitch, 4 / pitch
                axes.plot(
                    [-reach, -reach, reach, reach], [base + tick, base, base, base + tick],
                    color=LIGHT["muted"], linewidth=0.8, solid_capstyle="butt",
                )  # fmt: skip
            head = {"va": "baseline", "fontsize": 14 if strong else 13}
            tail = {"va": "baseline", "fontsize": 11.5, "color": LIGHT["muted"]}
            upper, lower = (
                (y - 3 / pitch, y + 15 / pitch) if wide else (row + 24 / pitch, row + 42 / pitch)
            )
            beside(0, upper, f"{estimate['symbol']}  {estimate['name']}", **head)
            beside(0, lower, difference, **tail)
            beside(width, upper, points(estimate["value"], 2, signed=True), ha="right", **head)
            reaches = interval(estimate["low"], estimate["high"]).replace(BLANK, "no interval")
            beside(width, lower, reaches, ha="right", **tail)

        axes.locator_params(axis="x", nbins=9 if wide else 6)
        axes.set_xlabel(
            "points of utility; right of zero, the arm named first is better"
            if wide
            else "points; right of zero, the first arm is better",
            labelpad=7,
        )
        said = "; ".join(
            f"{e['name']} {points(e['value'], 2, signed=True)} "
            f"{interval(e['low'], e['high']).replace(BLANK, 'without interval')}"
            for e in estimates
        )
        return _svg(figure, f"Forest plot in points: {said}")


def _differences(verdict: Mapping[str, Any], estimate: Mapping[str, Any]) -> list[float]:
    """A contrast within each replicate; empty if there is but one, which is the contrast itself."""
    first, _, second = (part.strip() for part in compared(estimate)[0].partition(MINUS))
    arms = verdict["arms"]
    if first not in arms or second not in arms:
        return []
    pairs = zip(arms[first]["replicates"], arms[second]["replicates"], strict=False)
    each = [a - b for a, b in pairs]
    return each if len(each) > 1 else []


def curves(
    frame: pd.DataFrame,
    sensor: str | None = None,
    line: Mapping[str, float] | None = None,
    columns: int = 3,
) -> str:
    """Loss against samples seen, a panel per sensor, as an SVG string.

    Thin lines are replicates, thick lines their mean; all panels share both axes, and lie together with the
    lines of linear interpolation inside them.

    Args:
        frame: what curves.parquet holds.
        sensor: draw this panel alone.
        line: the loss that linear interpolation reaches on each sensor, drawn dashed.
        columns: panels side by side.
    """
    named = frame[frame["sensor"] != ""]
    chosen = [sensor] if sensor is not None else list(dict.fromkeys(named["sensor"]))
    lines = {
        key: _smooth(run) for key, run in named.groupby(["sensor", "arm", "replicate"], sort=True)
    }
    x_span = (0.0, max((float(x[-1]) for x, _ in lines.values()), default=1.0))
    linear = {key: height for key, height in (line or {}).items() if key in set(named["sensor"])}
    losses = [float(loss) for _, y in lines.values() for loss in y]
    y_span = _span([*losses, *linear.values()], 0.05)
    columns = min(columns, max(1, len(chosen)))
    rows = max(1, math.ceil(len(chosen) / columns))
    panel_width, panel_height = 340, 240 if sensor is None else 216
    with _figure(panel_width * columns, panel_height * rows) as figure:
        for position, name in enumerate(chosen):
            row, column = divmod(position, columns)
            bottom = (row + 1) * panel_height - 44
            axes = _axes(figure, column * panel_width + 40, bottom - 150, panel_width - 56, 150)
            axes.set_xlim(*x_span)
            axes.set_ylim(*y_span)
            start = -34 / (panel_width - 56)
            axes.text(
                start, 1.06, "loss", transform=axes.transAxes, fontsize=11, color=LIGHT["muted"]
            )
            if sensor is None:
                axes.text(start, 1.24, name, transform=axes.transAxes, fontsize=13)
            axes.set_xlabel("samples seen", labelpad=5)
            axes.locator_params(nbins=5)
            axes.xaxis.set_major_formatter(lambda x, _: count(x))
            axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.6)
            for arm in dict.fromkeys(named["arm"]):
                colour = LIGHT.get(arm, LIGHT["muted"])
                members = [line for key, line in lines.items() if key[:2] == (name, arm)]
                for seen, loss in members:
                    axes.plot(seen, loss, color=colour, linewidth=0.8, alpha=0.35)
                if members:
                    grid = np.linspace(
                        max(x[0] for x, _ in members), min(x[-1] for x, _ in members), 120
                    )
                    mean = np.mean([np.interp(grid, x, y) for x, y in members], axis=0)
                    axes.plot(grid, mean, color=colour, linewidth=2.2)
            if name in linear:
                panel = [run for key, run in lines.items() if key[0] == name]
                _interpolation(axes, linear[name], panel)
        return _svg(figure, f"Learning curves: {', '.join(chosen) or 'none'}")


def _interpolation(
    axes: Axes, height: float, runs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> None:
    """A dashed line at the loss of linear interpolation, named where the fewest points of curves lie."""
    axes.axhline(height, color=LIGHT["ink"], linewidth=1.0, dashes=(4, 3))
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    along = np.concatenate([(x - left) / (right - left) for x, _ in runs] or [np.zeros(0)])
    above = np.concatenate([(y - height) / (high - low) for _, y in runs] or [np.zeros(0)])
    room, width = 0.13, 0.5  # that the name takes, in shares of the panel

    def covered(end: str, side: int) -> tuple[bool, int]:
        """Whether the name would leave the panel, and how many points it would cover."""
        leaves = not low <= height + side * room * (high - low) <= high
        there = along < width if end == "left" else along > 1 - width
        return leaves, int((there & (side * above > 0) & (side * above < room)).sum())

    places = [("left", -1), ("right", 1), ("left", 1), ("right", -1)]
    end, side = min(places, key=lambda place: covered(*place))
    axes.annotate(
        f"linear interpolation {height:.2f}",
        (0.0 if end == "left" else 1.0, height), (4 if end == "left" else -4, 3 * side),
        xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha=end,
        va="top" if side < 0 else "bottom", fontsize=11, color=LIGHT["muted"],
    )  # fmt: skip


def _smooth(run: pd.DataFrame, most: int = 120) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Samples seen and loss of one run, neighbouring steps averaged down to ``most`` points."""
    run = run.sort_values("step")
    part = np.arange(len(run)) * min(most, len(run)) // len(run)
    mean = run.groupby(part)[["seen", "loss"]].mean()
    return mean["seen"].to_numpy(np.float64), mean["loss"].to_numpy(np.float64)


def dots(scores: pd.DataFrame, task: str) -> str:
    """Every replicate's score on one task by arm, with the baselines, as an SVG string.

    A baseline that lies so far off that the arms would run together is only pointed at.

    Args:
        scores: what scores.parquet holds.
        task: its name.

    Raises:
        ValueError: if no arm has a score on this task.
    """
    rows = scores[scores["task"] == task]
    if not rows["arm"].isin(list(ARMS)).any():
        raise ValueError(f"no arm has a score: {unknown('task', task, set(scores['task']))}")
    values = {
        name: [100 * float(v) for v in group["value"]]
        for name, group in rows.groupby("arm", sort=True)
    }
    arms = [arm for arm in ("mix", "solo", "share", "floor") if arm in values]
    lines = {name: float(np.mean(values[name])) for name in BASELINES if name in values}
    lines["chance"] = 100 * float(rows["floor"].iloc[0])
    names = [*arms, *lines]

    arm_values = [value for arm in arms for value in values[arm]]
    low, high = min(arm_values), max(arm_values)
    reach = 3 * max(high - low, 2.0)
    near = {name: x for name, x in lines.items() if low - reach <= x <= high + reach}

    pitch, above, below, left = 22, 6, 42, 108
    width, plot_height = 340, pitch * len(names)
    with _figure(width, above + plot_height + below) as figure:
        axes = _axes(figure, left, above, width - left - 14, plot_height)
        axes.set_xlim(*_span([*arm_values, *near.values()], 0.07))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks([])
        for row, name in enumerate(names):
            axes.text(
                -left / (width - left - 14), row, ARMS.get(name, name),
                transform=axes.get_yaxis_transform(), va="center_baseline", fontsize=12,
                color=LIGHT["ink"] if name in arms else LIGHT["muted"],
            )  # fmt: skip
            if name in lines and name not in near:
                below_all = lines[name] < low
                axes.text(
                    0.0 if below_all else 1.0, row,
                    f"\u2190 {points(lines[name] / 100)}" if below_all
                    else f"{points(lines[name] / 100)} \u2192",
                    transform=axes.get_yaxis_transform(), va="center_baseline", fontsize=11,
                    ha="left" if below_all else "right", color=LIGHT["muted"],
                )  # fmt: skip
            elif name in lines:
                # From its own row up through the arms, so that each can be read against it.
                axes.plot(
                    [lines[name]] * 2, [-0.5, row], color=LIGHT["muted"], linewidth=1,
                    linestyle=(0, (1 if name == "chance" else 4, 2)), dash_capstyle="butt",
                )  # fmt: skip
                axes.plot(
                    [lines[name]], [row], linestyle="none", marker="|", markersize=9,
                    color=LIGHT["muted"], markeredgewidth=1.6,
                )  # fmt: skip
            else:
                axes.plot(
                    [np.mean(values[name])], [row], linestyle="none", marker="|", markersize=17,
                    color=LIGHT[name], markeredgewidth=1.6,
                )  # fmt: skip
                axes.plot(
                    values[name], [row] * len(values[name]), linestyle="none", marker=MARKERS[name],
                    markersize=6.5, color=LIGHT[name], markeredgecolor=LIGHT["page"],
                    markeredgewidth=0.8,
                )  # fmt: skip
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"{metric_name(rows['metric'].iloc[0])} \u00d7 100", labelpad=5)
        said = ", ".join(f"{ARMS[arm]} {np.mean(values[arm]):.1f}" for arm in arms)
        return _svg(figure, f"Scores on {task}: {said}")


def metric_name(name: str) -> str:
    known = {"r2": "R\u00b2", "mean_iou": "mean IoU", "iou_positive": "IoU of the class sought"}
    return known.get(name, name.replace("_", " "))


def png(pixels: NDArray[np.float32]) -> str:
    """An image as a ``data:`` address of an 8-bit PNG; pixels that are NaN are transparent grey.

    Args:
        pixels: (h, w, 1 or 3), display values in [0, 1].
    """
    hidden = np.isnan(pixels).any(axis=-1, keepdims=True)
    colour = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    grey = np.rint(255 * np.clip(np.where(hidden, 0.5, colour), 0, 1))
    rgba = np.concatenate([grey, np.where(hidden, 0, 255)], axis=-1).astype(np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = rgba.shape[:2]
    scanlines = b"".join(b"\0" + row.tobytes() for row in rgba)
    image = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 6, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(scanlines, 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(image).decode()
