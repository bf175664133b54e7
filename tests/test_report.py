"""The report page: honest first line, right numbers, nothing from outside, the same bytes twice."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from gfmsum import figures, report
from gfmsum.figures import curves, dots, forest, points
from gfmsum.learned import learned
from gfmsum.report import NAME, blind, main, render

CAVEAT = "Synthetic scenes: this checks the instrument and is no evidence about real sensors."
HOSTILE = "<script>alert(1)</script>"
CHROMIUM = Path("/usr/bin/chromium")

LEVELS = {"solo": 0.55, "share": 0.52, "mix": 0.565, "floor": 0.30}
ARMS = tuple(LEVELS)


def write_study(
    folder: Path,
    *,
    replicates: int = 3,
    mix: tuple[str, ...] = ("s1", "s2", "landsat", "naip", "modis"),
    tasks: tuple[str, ...] = ("land cover (s1)", "Überflutung & Höhe"),
    seed: int = 0,
    steps: int = 204,
) -> dict[str, Any]:
    """Plausible, seeded numbers that obey the identity, as a study writes them; its verdict."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    target, batch, unique = mix[0], 60, 4080
    chance, statistics, means = (0.125, 0.0), (0.50, 0.33), (0.41, 0.21)

    rows: list[dict[str, Any]] = []

    def score(arm: str, replicate: int, index: int, value: float) -> float:
        floor, ceiling = chance[index % 2], 1.0
        utility = (value - floor) / (ceiling - floor)
        rows.append(
            {
                "arm": arm, "replicate": replicate, "run": "", "sensor": target,
                "task": tasks[index], "probe": "linear",
                "metric": ("accuracy", "r2")[index % 2], "value": value,
                "utility": utility, "floor": floor, "ceiling": ceiling, "n_test": 600,
                "strength": 1.0, "edge": index == 0 and arm == "share",
            }
        )  # fmt: skip
        return utility

    utility: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for arm in ARMS:
        for replicate in range(replicates):
            each = [
                score(arm, replicate, i, LEVELS[arm] - 0.2 * (i % 2) + 0.1 + rng.normal(0, 0.009))
                for i in range(len(tasks))
            ]
            utility[arm].append(float(np.mean(each)))
    for index in range(len(tasks)):
        score("band means", 0, index, means[index % 2])
        score("band statistics", 0, index, statistics[index % 2])
    scores = pd.DataFrame(rows)
    scores.to_parquet(folder / "scores.parquet")

    t = 2.78  # Student's, about four degrees of freedom
    estimates: list[dict[str, Any]] = []
    for symbol, name, first, second, meaning in (
        ("Δ", "substitution", "mix", "solo", "other sensors' data in place of the target's own"),
        ("α", "addition", "mix", "share", "other sensors' data on top of the same own data"),
        ("δ", "dilution", "solo", "share", "the target's own data that the mix gives up"),
    ):
        value = float(np.mean(utility[first]) - np.mean(utility[second]))
        spread = (
            math.sqrt(
                (np.var(utility[first], ddof=1) + np.var(utility[second], ddof=1)) / replicates
            )
            if replicates > 1
            else None
        )
        estimates.append(
            {
                "name": name, "symbol": symbol, "meaning": f"{first} − {second}: {meaning}",
                "value": value,
                "low": None if spread is None else value - t * spread,
                "high": None if spread is None else value + t * spread,
                "standard_error": spread, "df": None if spread is None else 4.0,
                "p": None if spread is None else 0.0304,
                "p_adjusted": None if spread is None else 0.0609,
                "p_equivalence": None if spread is None else 0.0001,
                "mde": None if spread is None else 3.9 * spread,
                "kind": "undecided" if name == "substitution" else "more",
                "negligible": False, "exploratory": name != "substitution",
                "run_variance": None if spread is None else spread**2, "item_variance": 1e-5,
                "why": "" if spread else "one replicate has no spread, so there is no interval",
            }
        )  # fmt: skip
    whole, added, diluted = (estimate["value"] for estimate in estimates)
    verdict: dict[str, Any] = {
        "schema": 1, "target": target, "mix": list(mix), "data": "synthetic", "budget": "tiny",
        "replicates": replicates, "seed": seed, "unique": unique, "seen": steps * batch,
        "kind": "undecided",
        "sentence": "With 3 replicates the interval holds both zero and differences that matter; "
        "effects under 2.9 points could not have been seen.",
        "caveats": [CAVEAT, "3 replicates are a smoke run: 8 would confirm."],
        "margin": 0.01, "confidence": 0.95, "estimates": estimates,
        "identity_residual": whole - (added - diluted),
        "arms": {
            arm: {"utility": float(np.mean(each)), "replicates": each}
            for arm, each in utility.items()
        },
        "correlation": {"solo~mix": -0.08 if replicates > 1 else None, "share~mix": None},
        "superiority": 2 / 9,
        "tasks": [
            {
                "task": task, "metric": ("accuracy", "r2")[i % 2], "floor": chance[i % 2],
                "ceiling": 1.0, "n_test": 600, "clusters": 60,
                "means": {
                    str(arm): float(group["value"].mean())
                    for arm, group in scores[scores["task"] == task].groupby("arm")
                },
                "substitution": 0.0,
            }
            for i, task in enumerate(tasks)
        ],
        "command": f"python -m gfmsum.ablate sensor={target} mix={'+'.join(mix)} budget=tiny",
    }  # fmt: skip
    (folder / "verdict.json").write_text(json.dumps(verdict, ensure_ascii=False), "utf-8")

    runs: dict[str, Any] = {}
    curve: list[dict[str, Any]] = []
    for arm in ARMS:
        seen = {"solo": [target], "share": [target], "mix": list(mix), "floor": []}[arm]
        for replicate in range(replicates):
            name = f"{arm}{replicate}"
            reused = arm == "solo" and replicate == 1
            trained = 0 if arm == "floor" else steps
            runs[name] = {
                "arm": arm, "replicate": replicate, "sees": seen, "steps": trained,
                "seen": trained * batch,
                "seen_by_sensor": {s: trained * batch // len(seen) for s in seen},
                "unique_by_sensor": {s: unique // (len(mix) if arm != "solo" else 1) for s in seen},
                "encoder_tokens": trained * batch * 16, "decoder_tokens": trained * batch * 64,
                "flops": trained * (2.60e11 if arm == "mix" else 2.05e11),
                "seconds": trained * 0.11 + replicate, "device": "cpu", "reused": reused,
            }  # fmt: skip
            if reused or not seen:
                continue
            for index, sensor in enumerate(seen):
                rate = 40.0 if arm != "mix" else 70.0
                for step in range(1, trained + 1):
                    loss = 0.42 + 0.05 * index + 0.6 * math.exp(-step / rate)
                    curve.append(
                        {
                            "arm": arm, "replicate": replicate, "run": name, "step": step,
                            "seen": step * batch, "sensor": sensor,
                            "loss": loss + rng.normal(0, 0.02),
                        }
                    )  # fmt: skip
            own = [row for row in curve if row["run"] == name]
            curve += [
                row | {"sensor": "", "loss": float(np.mean([other["loss"] for other in same]))}
                for row in own[:trained]
                for same in [[other for other in own if other["step"] == row["step"]]]
            ]
    (folder / "ledger.json").write_text(json.dumps({"runs": runs}), "utf-8")
    pd.DataFrame(curve).to_parquet(folder / "curves.parquet")

    y, x = np.mgrid[0:32, 0:32] / 32
    images = {}
    for sensor in mix:
        channels = 1 if sensor == "s1" else 3
        phase = rng.uniform(0, 6, (3, channels, 1, 1))
        fields = 0.5 + 0.3 * np.sin(9 * x * phase[:, :, :1] / 3 + phase) * np.cos(7 * y + phase)
        original = np.moveaxis(fields, 1, -1) + rng.normal(0, 0.05, (3, 32, 32, channels))
        hidden = np.kron(rng.random((3, 8, 8)) < 0.75, np.ones((4, 4), bool))[..., None]
        rebuilt = np.where(hidden, np.moveaxis(fields, 1, -1) * 0.9 + 0.05, original)
        stack = np.stack([original, np.where(hidden, np.nan, original), rebuilt], axis=1)
        images[sensor] = np.clip(stack, 0, 1).astype(np.float32)
    np.savez(folder / "reconstructions.npz", **images)
    (folder / "config.yaml").write_text(
        f"sensor: {target}\nmix: {'+'.join(mix)}\nbudget:\n  name: tiny\n  unique: {unique}\n",
        "utf-8",
    )
    return verdict


# --- reading a page ---


class Page(HTMLParser):
    """Tags, attributes and texts of a page as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.body: list[str] = []  # texts that are shown, in order
        self.tables: dict[str, list[list[str]]] = {}
        self._table: list[list[str]] | None = None
        self._cell = self._in_body = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        self._in_body |= tag == "body"
        if tag == "table":
            self._table = self.tables.setdefault(attributes["id"], [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append("")
            self._cell = True
        elif tag in ("small", "span") and self._cell and self._table is not None:
            self._table[-1][-1] += " "

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        self._cell &= tag not in ("td", "th")
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if self._in_body and data.strip():
            self.body.append(data.strip())
        if self._cell and self._table is not None:
            self._table[-1][-1] += data

    def rows(self, table: str) -> list[list[str]]:
        """The cells of a table's body, stripped."""
        return [[cell.strip() for cell in row] for row in self.tables[table][1:]]


def number(text: str) -> float:
    """The first number of a cell."""
    return float(text.split(" ")[0].replace("−", "-").replace("\u202f", ""))


def page(folder: Path) -> Page:
    return Page(render(folder).read_text("utf-8"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    return folder, write_study(folder, mix=("s1", "s2"), steps=20)


@pytest.fixture(scope="module")
def html(study: tuple[Path, dict[str, Any]]) -> str:
    return render(study[0]).read_text("utf-8")


def change(folder: Path, edit: dict[str, Any]) -> None:
    """Replace fields of a study's verdict."""
    path = folder / "verdict.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | edit), "utf-8")


# --- the page ---


def test_the_same_study_gives_the_same_bytes_anywhere(
    study: tuple[Path, dict[str, Any]], html: str, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(study[0], tmp_path / "elsewhere")
    (elsewhere / NAME).unlink()
    assert render(elsewhere).read_bytes() == html.encode()


def test_nothing_else_is_left_in_the_folder(study: tuple[Path, dict[str, Any]], html: str) -> None:
    written = {"verdict.json", "scores.parquet", "curves.parquet", "ledger.json", "config.yaml"}
    assert {path.name for path in study[0].iterdir()} == written | {"reconstructions.npz", NAME}


def test_a_failed_write_leaves_the_old_report(
    study: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(study[0], tmp_path / "study")
    (folder / NAME).write_text("old", "utf-8")
    before = {path.name for path in folder.iterdir()}

    def broken(*_: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk is full"):
        render(folder)
    assert (folder / NAME).read_text("utf-8") == "old"
    assert {path.name for path in folder.iterdir()} == before


def test_the_first_text_is_the_caveat_and_then_come_question_and_verdict(html: str) -> None:
    texts = Page(html).body
    assert texts[0] == CAVEAT
    question = next(i for i, text in enumerate(texts) if text.startswith("Given the same"))
    assert texts[question].endswith("improves its performance on Sentinel-1 IW GRD?")
    assert texts[question + 1] == "undecided"
    assert texts[question + 2].startswith("With 3 replicates")


def test_nothing_is_fetched_from_outside(html: str) -> None:
    loads = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
    tags = Page(html).tags
    for tag, attributes in tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in loads or value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", html)
    assert re.sub(r'xmlns="http://www\.w3\.org/2000/svg"', "", html).count("://") == 0
    policy = next(a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = policy.split("; ")
    assert rules[:3] == ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]


def test_ids_are_unique_and_references_resolve(html: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([\w-]+)', html)) <= set(ids)


def test_estimates_agree_with_the_verdict(study: tuple[Path, dict[str, Any]], html: str) -> None:
    rows = Page(html).rows("estimates")
    assert len(rows) == 3
    for row, estimate in zip(rows, study[1]["estimates"], strict=True):
        head, value, interval, p, adjusted, equivalence, mde, kind = row
        assert head.split() == [
            estimate["symbol"], estimate["name"], *estimate["meaning"].split(":")[0].split()
        ]  # fmt: skip
        assert number(value) == pytest.approx(100 * estimate["value"], abs=0.0051)
        low, high = (number(end) for end in interval.strip("[]").split(", "))
        assert low == pytest.approx(100 * estimate["low"], abs=0.0051)
        assert high == pytest.approx(100 * estimate["high"], abs=0.0051)
        assert number(mde) == pytest.approx(100 * estimate["mde"], abs=0.0051)
        assert (p, adjusted, equivalence) == ("0.030", "0.061", "<\u00a0.001")
        expected = [estimate["kind"]] + ["exploratory"] * estimate["exploratory"]
        assert kind.split() == expected


def test_how_runs_compare_is_said(html: str) -> None:
    assert "Correlation of replicates between arms: solo and mix −0.08." in html
    assert "A mix run beats a solo run in 22&nbsp;% of their pairs." in html


def test_the_identity_line_adds_up(study: tuple[Path, dict[str, Any]], html: str) -> None:
    line = next(text for text in Page(html).body if text.startswith("Δ = α − δ: "))
    whole, added, diluted = (
        float(text.replace("−", "-")) for text in re.findall(r"[+−]\d+\.\d\d", line)
    )
    assert whole == pytest.approx(added - diluted, abs=0.0151)
    assert whole == pytest.approx(100 * study[1]["estimates"][0]["value"], abs=0.0051)


def test_task_scores_agree_with_the_tables(study: tuple[Path, dict[str, Any]], html: str) -> None:
    columns = ("band means", "band statistics", "floor", "solo", "share", "mix")
    scores = pd.read_parquet(study[0] / "scores.parquet")
    for row, task in zip(Page(html).rows("tasks"), study[1]["tasks"], strict=True):
        assert row[0].startswith(task["task"])
        assert number(row[1]) == pytest.approx(100 * task["floor"], abs=0.051)
        for cell, arm in zip(row[2:8], columns, strict=True):
            mine = scores[(scores["task"] == task["task"]) & (scores["arm"] == arm)]["value"]
            assert number(cell) == pytest.approx(100 * mine.mean(), abs=0.051)
            if len(mine) > 1:
                deviation = math.sqrt(sum((mine - mine.mean()) ** 2) / (len(mine) - 1))
                assert float(cell.split("±")[1]) == pytest.approx(100 * deviation, abs=0.051)
        raw = 100 * (task["means"]["mix"] - task["means"]["solo"])
        assert number(row[8]) == pytest.approx(raw, abs=0.051)


def test_rows_of_one_task_stand_together_by_number_of_labels(tmp_path: Path) -> None:
    names = ("maps", "maps@10", "maps@50", "a@5 @ home")
    verdict = write_study(tmp_path, mix=("s1", "s2"), tasks=names, steps=6)
    for task, labels in zip(verdict["tasks"], (0, 10, 50, None), strict=True):
        task["labels"] = labels
    means = verdict["tasks"][1]["means"]
    means["band statistics"], means["texture"] = 0.9, 0.95
    change(tmp_path, {"tasks": verdict["tasks"]})
    parsed = page(tmp_path)
    rows = parsed.rows("tasks")
    assert [row[0].split(" accuracy")[0].split(" R²")[0] for row in rows[:2]] == [
        "a@5 @ home",
        "maps",
    ]
    assert [row[0].split()[0] for row in rows[2:]] == ["50", "all"]
    assert "10 labels" in rows[1][0] and "cannot discriminate" in rows[1][0]
    # Floors that only some rows have get a column; chance comes before, random init after them.
    assert number(rows[1][4]) == pytest.approx(95) and rows[2][4] == "–"
    for row, task in zip(rows[1:], (verdict["tasks"][i] for i in (1, 2, 0)), strict=True):
        assert number(row[-2]) == pytest.approx(100 * task["means"]["mix"], abs=0.051)
    shown = " ".join(parsed.body)
    assert "mean over these 4 rows" in shown
    assert (
        "maps, 10 labels" in shown
        and "band statistics do as well and texture does as well" in shown
    )


def test_the_ledger_agrees_with_what_was_spent(html: str) -> None:
    rows = {row[0].split()[0]: row[1:] for row in Page(html).rows("spent")}
    # 20 steps of 60 samples; 16 visible of 64 patches; 2.05e11 FLOPs a step, 2.6e11 for the mix.
    assert rows["solo"] == [
        "20", "1\u202f200", "4\u202f080", "0.019", "0.077", "4.10", "3.20", "1 of 3"
    ]  # fmt: skip
    assert rows["share"][2] == "2\u202f040"
    assert rows["mix"][5] == "5.20"
    assert rows["random"][:6] == ["0"] * 6
    # (5.20 - 4.10) / mean(4.10, 4.10, 5.20) = 24.63 %
    assert "differs by 24.63\u00a0% of its mean" in " ".join(Page(html).body)


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    sensor = '"><img src=x onerror=alert(2)>'
    write_study(tmp_path, mix=("s1", sensor), tasks=(HOSTILE, "価格 $x_1$ & \\alpha"), steps=6)
    change(
        tmp_path,
        {
            "sentence": f"{HOSTILE} &amp;",
            "caveats": [HOSTILE],
            "data": HOSTILE,
            "command": "a < b && c",
        },
    )
    (tmp_path / "config.yaml").write_text(f"name: </pre>{HOSTILE}\n", "utf-8")
    html = render(tmp_path).read_text("utf-8")
    parsed = Page(html)
    assert "<script" not in html
    assert "<img src=x" not in html
    assert all(a["src"].startswith("data:image/png;") for t, a in parsed.tags if t == "img")
    assert parsed.body[0] == HOSTILE
    assert f"{HOSTILE} &amp;" in parsed.body
    assert "a < b && c" in parsed.body
    assert f"name: </pre>{HOSTILE}" in parsed.body
    assert [row[0].splitlines()[0].split("  ")[0] for row in parsed.rows("tasks")] == [
        f"{HOSTILE} accuracy, 600 test items in 60 places",
        "価格 $x_1$ & \\alpha R², 600 test items in 60 places",
    ]
    assert any(a.get("alt") == f"{sensor}, sample 1, original" for _, a in parsed.tags)


def test_one_replicate_has_points_but_no_interval_and_says_why(tmp_path: Path) -> None:
    verdict = write_study(tmp_path, replicates=1, mix=("s1", "s2"), tasks=("one",), steps=6)
    parsed = page(tmp_path)
    for row, estimate in zip(parsed.rows("estimates"), verdict["estimates"], strict=True):
        assert number(row[1]) == pytest.approx(100 * estimate["value"], abs=0.0051)
        assert row[2:7] == ["–"] * 5
    shown = " ".join(parsed.body)
    assert "one replicate has no spread" in shown
    assert "Small dots" not in shown
    assert "±" not in parsed.rows("tasks")[0][4]
    assert "nan" not in shown.lower().split()
    assert "None" not in shown
    assert parsed.body.count("no interval") == 2 * 3  # in the wide and in the narrow figure
    marks = list(svg(forest(verdict)).iter("{http://www.w3.org/2000/svg}use"))
    assert sum("var(--page" in mark.get("style", "") for mark in marks) == 3
    assert not [mark for mark in marks if "opacity: 0.7" in mark.get("style", "")]


def test_curves_and_reconstructions_may_be_absent(tmp_path: Path) -> None:
    write_study(tmp_path, mix=("s1", "s2"), tasks=("one",), steps=6)
    (tmp_path / "curves.parquet").unlink()
    (tmp_path / "reconstructions.npz").unlink()
    shown = " ".join(page(tmp_path).body)
    assert "There are no learning curves in this folder." in shown
    assert "There are no reconstructions in this folder." in shown
    assert "No curve was kept for mix 0, mix 1, mix 2, share 0" in shown


def test_a_reused_run_without_a_curve_is_named(html: str) -> None:
    assert "No curve was kept for solo 1 (reused)." in Page(html).body


def test_what_need_not_be_said_is_not_and_what_must_be_is(tmp_path: Path) -> None:
    verdict = write_study(tmp_path, mix=("s1", "s2"), replicates=2, steps=6)
    verdict["tasks"][0]["means"]["band statistics"] = 0.9
    verdict["estimates"][0] |= {"kind": "equal", "negligible": True, "value": -0.004}
    change(
        tmp_path,
        {"caveats": [], "kind": "equal", "mix": ["s2"]}
        | {name: verdict[name] for name in ("estimates", "tasks")},
    )
    parsed = page(tmp_path)
    assert parsed.body[0].startswith("Given the same architecture")
    assert not any(a.get("class") == "caveats" for _, a in parsed.tags)
    assert parsed.rows("estimates")[0][-1] == "equal (less, but negligible)"
    assert "but the mix holds none of it" in " ".join(parsed.body)
    blind_one, other = parsed.rows("tasks")
    assert "cannot discriminate" in blind_one[0]
    assert "cannot discriminate" not in other[0]
    assert "two standard deviations" in " ".join(parsed.body)
    # The target's own curves are shown although the mix lacks it.
    assert parsed.body.count("samples seen") == 2 + 1  # two panels, and a column of the ledger


# --- figures ---


def svg(drawn: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawn)


def strokes(drawn: str, width: str) -> list[list[float]]:
    """The numbers in every path drawn with this line width."""
    return [
        [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
        for path in svg(drawn).iter("{http://www.w3.org/2000/svg}path")
        if f"stroke-width: {width};" in f"{path.get('style', '')};"
    ]


@pytest.mark.parametrize("width", [760, 344])
def test_forest_draws_to_scale(study: tuple[Path, dict[str, Any]], width: int) -> None:
    verdict = study[1]
    drawn = forest(verdict, width)
    assert forest(verdict, width) == drawn
    band = next(
        [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
        for path in svg(drawn).iter("{http://www.w3.org/2000/svg}path")
        if "var(--band" in path.get("style", "")
    )
    left, right = min(band[::2]), max(band[::2])  # the margin: one point either side of zero
    zero, unit = (left + right) / 2, (right - left) / 2

    def place(utility: float) -> float:
        return zero + 100 * utility * unit

    (first,) = strokes(drawn, "2.6")
    others = strokes(drawn, "1.6")
    for line, estimate in zip([first, *others], verdict["estimates"], strict=True):
        assert line[::2] == pytest.approx(
            [place(estimate["low"]), place(estimate["high"])], abs=0.1
        )
    brackets = [line for line in strokes(drawn, "0.8") if len(line) == 8]
    for line, estimate in zip(brackets, verdict["estimates"], strict=True):
        ends = [place(-estimate["mde"]), place(estimate["mde"])]
        assert sorted({round(x, 2) for x in line[::2]}) == pytest.approx(ends, abs=0.1)
    circles = [
        (float(use.get("x", "")), float(use.get("y", "")))
        for use in svg(drawn).iter("{http://www.w3.org/2000/svg}use")
        if "stroke: var(--page" in use.get("style", "")
    ]
    values = [estimate["value"] for estimate in verdict["estimates"]]
    assert [x for x, _ in circles] == pytest.approx([place(value) for value in values], abs=0.1)
    assert [y for _, y in circles] == sorted(y for _, y in circles)
    texts = ["".join(t.itertext()) for t in svg(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Δ  substitution", "mix − solo", "α  addition", "δ  dilution"} <= set(texts)
    assert ("±1 margin" in texts) == (width == 760)


def test_labels_stay_inside_their_figure_and_clear_of_each_other(
    study: tuple[Path, dict[str, Any]],
) -> None:
    wide, narrow = forest(study[1]), forest(study[1], 344)
    for drawn, limit in ((wide, 760.0), (narrow, 344.0)):
        for text in svg(drawn).iter("{http://www.w3.org/2000/svg}text"):
            style = text.get("style", "")
            size = float(re.findall(r"([\d.]+)px", style)[0])
            length = 0.62 * size * len("".join(text.itertext()))  # a generous mean width
            anchor = 0.5 if "middle" in style else 1.0 if "end" in style else 0.0
            start = float(text.get("x", "0")) - anchor * length
            assert -1 <= start <= limit + 1 - length, "".join(text.itertext())


def test_figures_ignore_the_style_of_the_session(study: tuple[Path, dict[str, Any]]) -> None:
    from matplotlib import rc_context

    plain = forest(study[1])
    with rc_context({"axes.grid": True, "xtick.direction": "in", "lines.markersize": 30}):
        assert forest(study[1]) == plain


def test_colours_of_figures_follow_the_page(html: str, study: tuple[Path, dict[str, Any]]) -> None:
    scores = pd.read_parquet(study[0] / "scores.parquet")
    frame = pd.read_parquet(study[0] / "curves.parquet")
    for drawn in (forest(study[1]), curves(frame), dots(scores, study[1]["tasks"][0]["task"])):
        assert "var(--" in drawn
        loose = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", drawn)
        assert not re.search(r"(?:fill|stroke): #", loose)
        assert "<style" not in drawn
        assert "<metadata" not in drawn
        assert svg(drawn).get("role") == "img"
        assert svg(drawn).get("aria-label")
    for colour in (*figures.LIGHT.values(), *figures.DARK.values()):
        assert colour in html


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK])
def test_colours_can_be_told_from_the_page(theme: dict[str, str]) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(name: str) -> float:
        light, dark = sorted((luminance(theme[name]), luminance(theme["page"])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    # WCAG 2.2: 4.5 for text, 3 for graphics.
    assert all(contrast(name) >= 4.5 for name in ("ink", "muted"))
    assert all(contrast(name) >= 3 for name in ARMS)


def test_curves_draw_a_panel_per_sensor_and_every_run(study: tuple[Path, dict[str, Any]]) -> None:
    frame = pd.read_parquet(study[0] / "curves.parquet")
    every = curves(frame)
    texts = ["".join(t.itertext()) for t in svg(every).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("samples seen") == 2
    assert {"s1", "s2"} <= set(texts)
    target = curves(frame, "s1")
    # In the target's panel: three runs of mix and share, two of solo; and one mean of each.
    assert sum("stroke-opacity: 0.35" in s for s in target.split("<path")) == 8
    assert len(strokes(target, "2.2")) == 3
    assert len(strokes(curves(frame, "s2"), "2.2")) == 1
    assert svg(curves(frame.iloc[:0])) is not None
    named = frame.replace({"sensor": {"s2": "$x_1$ & 雪"}})
    assert "$x_1$ & 雪" in [t.text for t in svg(curves(named)).iter() if t.tag.endswith("text")]


def test_a_curve_is_thinned_by_averaging_neighbours() -> None:
    run = pd.DataFrame(
        {"step": [3, 1, 2, 4], "seen": [30, 10, 20, 40], "loss": [2.0, 8.0, 6.0, 1.0]}
    )
    seen, loss = figures._smooth(run, most=2)
    assert (list(seen), list(loss)) == ([15.0, 35.0], [7.0, 1.5])
    seen, loss = figures._smooth(run, most=10)
    assert (list(seen), list(loss)) == ([10.0, 20.0, 30.0, 40.0], [8.0, 6.0, 2.0, 1.0])


# --- what was learned beside linear interpolation ---


def ends(losses: dict[str, list[float]], sensor: str = "s1", steps: int = 20) -> pd.DataFrame:
    """Curves at 1.5 that end, in their last tenth, at these losses: one list per arm, one run each."""
    return pd.DataFrame(
        [
            {
                "arm": arm, "replicate": replicate, "run": "", "step": step, "seen": 20 * step,
                "sensor": sensor, "loss": last if step > 0.9 * steps else 1.5,
            }
            for arm, runs in losses.items()
            for replicate, last in enumerate(runs)
            for step in range(1, steps + 1)
        ]
    )  # fmt: skip


def test_a_run_is_judged_by_its_last_tenth_against_its_sensors_line() -> None:
    frame = pd.concat([ends({"solo": [0.7, 0.9], "mix": [0.98]}), ends({"mix": [0.5]}, "s2")])
    found = learned(frame, {"s1": 0.8})
    assert [(end.arm, end.replicate, end.sensor) for end in found] == [
        ("mix", 0, "s1"), ("solo", 0, "s1"), ("solo", 1, "s1"),
    ]  # fmt: skip
    assert [end.loss for end in found] == pytest.approx([0.98, 0.7, 0.9])
    assert [(end.passed, end.plateau) for end in found] == [
        (False, True), (True, False), (False, False),
    ]  # fmt: skip
    assert learned(frame, {}) == []
    # Runs of other lengths have a last tenth of their own.
    longer = pd.concat([ends({"solo": [0.7]}), ends({"mix": [0.6]}, steps=40)])
    assert [end.loss for end in learned(longer, {"s1": 0.8})] == pytest.approx([0.6, 0.7])


def test_the_page_says_who_learned_no_more_than_linear_interpolation(tmp_path: Path) -> None:
    write_study(tmp_path, mix=("s1", "s2"))
    frame = ends({"solo": [0.7, 0.9, 0.88], "share": [0.99, 0.98, 0.85], "mix": [0.7, 0.72, 0.71]})
    pd.concat([frame, ends({"mix": [0.9]}, "s2")]).to_parquet(tmp_path / "curves.parquet")
    without = render(tmp_path).read_text("utf-8")
    assert "linear" not in without.partition('id="curves"')[2].partition("</section>")[0]
    (tmp_path / "interpolation.json").write_text('{"s1": 0.8, "s2": null}', "utf-8")
    shown = " ".join(page(tmp_path).body)
    assert "Below the line: solo (1 of 3 at 0.70), mix (3 of 3 at 0.71)." in shown
    assert (
        "Learned no more than linear interpolation: solo (2 of 3 at 0.89), share (1 of 3 at 0.85)."
        in shown
    )
    assert "Did not leave the plateau: share (2 of 3 at 0.98)." in shown
    assert shown.count("linear interpolation 0.80") == 1  # none in the panel of s2
    assert "within 3 % of 1.00" in shown.replace("\u00a0", " ")


def test_the_line_is_drawn_at_its_height_in_axes_that_hold_every_line() -> None:
    frame = pd.concat([ends({"solo": [0.6]}), ends({"mix": [0.7]}, "s2")])
    drawn = curves(frame, "s1", {"s1": 0.75, "s2": 0.3, "unseen": -9.0})
    (dashed,) = [
        [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
        for path in svg(drawn).iter("{http://www.w3.org/2000/svg}path")
        if "stroke-dasharray" in path.get("style", "")
    ]
    (curve,) = strokes(drawn, "2.2")  # from 1.5 down to 0.6
    top, bottom = min(curve[1::2]), max(curve[1::2])
    middle = top + (bottom - top) * (1.5 - 0.75) / (1.5 - 0.6)
    assert dashed[1::2] == pytest.approx([middle, middle], abs=0.1)
    # The panel of s2 has the same scale, so that its line fits this one too.
    other = curves(frame, "s2", {"s1": 0.75, "s2": 0.3})
    (second,) = strokes(other, "2.2")  # from 1.5 down to 0.7
    assert (max(second[1::2]) - min(second[1::2])) / (bottom - top) == pytest.approx(
        8 / 9, abs=0.01
    )
    assert "linear interpolation 0.30" in "".join(svg(other).itertext())
    assert "linear" not in curves(frame, "s1")


@pytest.mark.parametrize(("rate", "line", "end"), [(4, 0.9, "end"), (30, 0.45, "start")])
def test_the_line_is_named_where_no_curve_lies(rate: float, line: float, end: str) -> None:
    frame = ends({"solo": [0.0]}, steps=100)
    frame["loss"] = 0.5 + np.exp(-frame["step"] / rate)  # passes 0.9 early, and 0.45 never
    text = next(
        text
        for text in svg(curves(frame, "s1", {"s1": line})).iter()
        if "linear" in (text.text or "")
    )
    assert ("text-anchor: end" in text.get("style", "")) == (end == "end")


def test_a_damaged_line_is_said(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "interpolation.json").write_text('{"s1": "low"}', "utf-8")
    with pytest.raises(ValueError, match=r"interpolation\.json cannot be read"):
        render(tmp_path)


# --- other figures ---


def test_dots_show_every_replicate_and_point_to_far_baselines(
    study: tuple[Path, dict[str, Any]],
) -> None:
    scores = pd.read_parquet(study[0] / "scores.parquet")
    task = study[1]["tasks"][0]["task"]
    drawn = dots(scores, task)
    marks = [u.get("style", "") for u in svg(drawn).iter("{http://www.w3.org/2000/svg}use")]
    for arm in ARMS:
        assert sum(f"fill: var(--{arm}," in s and "stroke: var(--page" in s for s in marks) == 3
    assert "←" not in drawn
    assert "→" not in drawn
    # Arms within 2 points of each other, a baseline 40 points below.
    near = scores[scores["task"] == task].copy()
    near["value"] = np.where(near["arm"].isin(ARMS), 0.8 + near["replicate"] / 100, 0.4)
    assert "← 40.0" in dots(near, task)
    assert "← 12.5" in dots(near, task)
    with pytest.raises(ValueError, match="no arm has a score: unknown task 'land'"):
        dots(scores, "land")


def test_png_holds_the_pixels_and_hides_the_masked() -> None:
    pixels = np.array([[[0.0], [0.5]], [[np.nan], [2.0]]], np.float32)
    raw = b64decode(figures.png(pixels).removeprefix("data:image/png;base64,"))
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    at, data = 8, {}
    while at < len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        kind, body = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]
        assert struct.unpack(">I", raw[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            kind + body
        )
        data[kind], at = body, at + 12 + length
    assert data[b"IHDR"] == struct.pack(">2I5B", 2, 2, 8, 6, 0, 0, 0)
    lines = zlib.decompress(data[b"IDAT"])
    # Each scanline opens with filter 0; half of 255 rounds to even, 128; too bright is white.
    assert lines == bytes(
        [0, 0, 0, 0, 255, 128, 128, 128, 255, 0, 128, 128, 128, 0, 255, 255, 255, 255]
    )
    colour = np.array([[[1.0, 0.0, 0.2]]], np.float32)
    body = b64decode(figures.png(colour).partition(",")[2])
    start = body.index(b"IDAT") + 4
    assert zlib.decompress(body[start:-16])[1:] == bytes([255, 0, 51, 255])


# --- numbers and rules ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (points(0.5), "50.0"),
        (points(-0.0123, 2, signed=True), "−1.23"),
        (points(0.0123, 2, signed=True), "+1.23"),
        (points(-0.00001, 2, signed=True), "0.00"),
        (points(None), "–"),
        (points(float("nan")), "–"),
        (figures.interval(-0.01, 0.02), "[−1.00, +2.00]"),
        (figures.interval(None, 0.02), "–"),
        (figures.probability(0.0304), "0.030"),
        (figures.probability(0.00099), "<\u00a0.001"),
        (figures.probability(1.0), "1.000"),
        (figures.count(12240), "12\u202f240"),
        (figures.quantity(41.82), "41.8"),
        (figures.quantity(1234.5), "1\u202f234"),
        (figures.quantity(7.61e-7), "0.000"),
        (figures.quantity(0), "0"),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text == expected


def test_a_task_is_blind_if_baselines_or_random_weights_do_as_well() -> None:
    means = {"solo": 0.60, "share": 0.55, "mix": 0.62, "floor": 0.50, "band statistics": 0.59}
    spreads = {"solo": 0.05, "mix": 0.01, "floor": 0.01}
    assert blind(means, spreads) == ""  # .62 - .59 > 2 x .01 and .62 - .50 > 2 x .0141
    assert blind(means | {"band statistics": 0.601}, spreads) == "band statistics do as well"
    assert blind(means | {"floor": 0.592}, spreads) == "random initialisation does as well"
    assert "band" in blind(means, spreads | {"mix": 0.02})
    assert blind({"solo": 0.6, "band statistics": 0.6}, {}) != ""
    assert blind(means | {"texture": 0.61}, spreads) == "texture does as well"
    assert blind({"floor": 0.6}, {}) == ""


def test_displays_are_told_in_words() -> None:
    assert report._display("s1", 1) == "backscatter in grey, bright is strong"
    assert report._display("s2", 3) == "B04, B03, B02 as red, green and blue"
    assert report._display("modis", 3) == "B01, B04, B03 as red, green and blue"
    assert report._display("naip", 1) == "one band in grey"
    assert report._display("mine", 3) == "three channels as red, green and blue"


# --- command line ---


def test_command_line_renders_again_without_anything_heavy(
    study: tuple[Path, dict[str, Any]], html: str
) -> None:
    (study[0] / NAME).unlink()
    code = """if True:
        import sys
        import gfmsum.report
        assert not {"torch", "matplotlib", "lightning"} & set(sys.modules)
        status = gfmsum.report.main(sys.argv[1:])
        assert not {"torch", "lightning", "matplotlib.pyplot"} & set(sys.modules)
        sys.exit(status)
    """
    command = [sys.executable, "-c", code, str(study[0])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(study[0] / NAME)
    assert (study[0] / NAME).read_text("utf-8") == html


def damage(folder: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("verdict.json", None, "is missing: the study has not finished"),
        ("verdict.json", b"{", "cannot be read"),
        ("verdict.json", b'{"schema": 2}', "not a verdict of schema 1"),
        ("verdict.json", b'{"schema": 1}', "do not fit together"),
        ("ledger.json", b"{}", "cannot be read"),
        ("scores.parquet", b"none", "cannot be read"),
        ("reconstructions.npz", b"none", "cannot be read"),
        ("config.yaml", b"\xff", "cannot be read"),
    ],
)
def test_a_bad_folder_is_one_line_and_exit_2(
    study: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    says: str,
) -> None:
    folder = shutil.copytree(study[0], tmp_path / "study")
    (folder / NAME).unlink(missing_ok=True)
    damage(folder, name, content)
    assert main([str(folder)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert says in output.err
    assert not (folder / NAME).exists()


def test_no_folder_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere is not a folder" in error


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM}")
def test_a_browser_shows_the_page_without_complaint(tmp_path: Path) -> None:
    write_study(tmp_path / "study", mix=("s1", "s2"), tasks=(HOSTILE,), steps=20)
    path = render(tmp_path / "study")
    log = tmp_path / "requests.json"
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
            f"--log-net-log={log}", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    shown = Page(done.stdout)
    assert shown.body[0] == CAVEAT
    assert "undecided" in shown.body
    assert not [tag for tag, _ in shown.tags if tag == "script"]
    # The browser writes what a page's console shows, blocked requests included, to this log.
    assert "CONSOLE" not in done.stderr
    # Its own traffic is not the page's; the page's requests carry the page as their initiator.
    assert '"initiator":"file' not in log.read_text("utf-8", errors="replace")
