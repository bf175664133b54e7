"""Where a contrast's variance comes from: the two tables as matrices, and their mean squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.records import Role
from gfmsum.verdict.design import Design

if TYPE_CHECKING:  # when used, so that --help and mistakes do not wait seconds for it
    import pandas as pd

Floats = NDArray[np.float64]
Names = NDArray[Any]
Squares = list[tuple[float, int]]  # mean squares with their degrees of freedom
AGREE = 1e-6  # a score and the mean of its items may differ by this much
JUDGED = (Role.SOLO, Role.SHARE, Role.PART, Role.MIX, Role.FLOOR)  # whose runs a verdict shows


@dataclass(frozen=True, slots=True)
class Measured:
    """The runs of each arm: r replicates, n items of all tasks, g places."""

    replicates: Mapping[str, Names]  # (r,) their names
    utility: Mapping[str, Floats]  # (r,) mean over tasks
    items: Mapping[str, Floats]  # (r, n) contributions; no arms if the items are unknown
    by_place: Mapping[str, Floats]  # (r, g) what a place adds to the utility, centred
    places: Names  # (g,)
    stratum: NDArray[np.intp]  # (g,) places whose tasks are linked by common places
    clusters: Mapping[str, int]  # places of each task; 0 if its items are unknown


@dataclass(frozen=True, slots=True)
class _Grid:
    """A column of a table as a matrix without holes: one row per run, one column per cell."""

    values: Floats  # (runs, cells)
    runs: tuple[tuple[str, Any], ...]  # arm and replicate
    cells: Mapping[str, Names]  # (cells,) of each column that names them

    @classmethod
    def of(
        cls,
        rows: pd.DataFrame,
        columns: tuple[str, ...],
        values: str,
        remedy: str,
        runs: tuple[tuple[str, Any], ...] | None = None,
    ) -> _Grid:
        """Lay ``values`` out, in the order of names, so that the order of rows does not matter.

        Args:
            runs: the rows wanted; all there are if None.

        Raises:
            ValueError: for a cell that is there twice, has no name or no finite value.
        """
        run, run_names, unnamed = _codes(rows, ("arm", "replicate"))
        cell, cells, nowhere = _codes(rows, columns)
        at = run * len(cells[columns[0]]) + cell
        there = np.bincount(at, minlength=len(run_names["arm"]) * len(cells[columns[0]]))
        problem = unnamed | nowhere
        problem = problem if problem.any() else there[at] > 1
        if problem.any():
            row = rows[["arm", "replicate", *columns]].iloc[int(problem.argmax())].to_dict()
            raise ValueError(f"{values} of {row} is there twice or has no name; {remedy}")
        flat = np.full(len(there), np.nan)
        flat[at] = rows[values].to_numpy(np.float64)
        found = tuple(zip(map(str, run_names["arm"]), run_names["replicate"].tolist(), strict=True))
        matrix = flat.reshape(len(found), len(cells[columns[0]]))
        if runs is not None:
            order = {name: i for i, name in enumerate(found)}
            holes = np.vstack([matrix, np.full(matrix.shape[1], np.nan)])
            matrix, found = holes[[order.get(name, -1) for name in runs]], runs
        if not np.isfinite(matrix).all():
            i, j = np.argwhere(~np.isfinite(matrix))[0]
            name = {column: cells[column].tolist()[j] for column in columns}
            raise ValueError(
                f"arm {found[i][0]!r}, replicate {found[i][1]!r} has no finite {values} of {name}; "
                f"{remedy}"
            )
        return cls(matrix, found, cells)


def _codes(
    rows: pd.DataFrame, columns: tuple[str, ...]
) -> tuple[NDArray[np.intp], dict[str, Names], NDArray[np.bool_]]:
    """Rows (n,) numbered by what several columns name, the names sorted; and which have none."""
    import pandas as pd

    code, unnamed = np.zeros(len(rows), dtype=np.intp), np.zeros(len(rows), dtype=bool)
    split = []
    for column in columns:
        part, names = pd.factorize(rows[column], sort=True)
        split.append((len(names), np.asarray(names)))
        unnamed |= part < 0
        code = code * len(names) + part
    code, different = pd.factorize(np.where(unnamed, 0, code), sort=True)
    parts = {}
    for column, (size, names) in zip(reversed(columns), reversed(split), strict=True):
        different, part = np.divmod(different, max(size, 1))
        parts[column] = names[part]
    return code, parts, unnamed


def of_design(rows: pd.DataFrame, design: Design) -> pd.DataFrame:
    """The rows of the design's own runs on its tasks, and of the baselines.

    Without a column ``sees`` every run is one of the design; with it, those pretrained on other
    sensors are left out. The own-only curve's points between share and solo are no arm.
    """
    import pandas as pd

    keep = rows["arm"] != Role.OWN
    if design.tasks:
        keep &= rows["task"].isin(design.tasks)
    if "sees" in rows:
        # A share arm whose mix lacks the target has seen nothing: it is the floor.
        alone = design.target if design.target in design.mix else ""
        wanted = {
            Role.SOLO: design.target, Role.SHARE: alone, Role.PART: alone,
            Role.MIX: together(design.mix), Role.FLOOR: "",
        }  # fmt: skip
        arm, arms = pd.factorize(rows["arm"])
        sees, seen = pd.factorize(rows["sees"].fillna(""))
        own = np.array(
            [
                [wanted.get(a, s) == s for s in (together(names.split("+")) for names in seen)]
                for a in arms
            ]
        )
        keep &= own.reshape(len(arms), len(seen))[arm, sees]
    return rows[keep]


def together(sensors: Iterable[str]) -> str:
    """Names of sensors in one text, the same for any order."""
    return "+".join(sorted(sensors))


def measure(own: pd.DataFrame, predictions: pd.DataFrame | None, design: Design) -> Measured:
    """Check that the tables are complete and agree, and lay them out as matrices.

    Args:
        own: scores of the target's tasks, of the design's runs and baselines.
        predictions: their test items, and perhaps those of other tasks.

    Raises:
        ValueError: as :func:`~gfmsum.verdict.judge`.
    """
    from scipy.sparse.csgraph import connected_components

    ran = own[own["arm"].isin(JUDGED)]
    for arm in sorted({arm for contrast in design.contrasts for arm in contrast.weights}):
        if arm not in set(ran["arm"]):
            raise ValueError(
                f"no score of arm {arm!r} on {design.target}; run and probe it first, or leave out "
                "the contrasts that hold it"
            )
    scores = _Grid.of(
        ran, ("task",), "utility", "probe every run once on each task, one probe only"
    )
    u, tasks = scores.values, scores.cells["task"].tolist()
    arms = np.array([arm for arm, _ in scores.runs])
    replicates = np.array([replicate for _, replicate in scores.runs], dtype=object)
    rows_of = {arm.value: arms == arm for arm in JUDGED if arm in arms}
    names = {arm: replicates[of] for arm, of in rows_of.items()}
    utility = {arm: u[of].mean(axis=1) for arm, of in rows_of.items()}
    if predictions is None:
        nowhere = np.zeros(0, dtype=np.intp)
        return Measured(names, utility, {}, {}, nowhere, nowhere, dict.fromkeys(map(str, tasks), 0))
    items = _Grid.of(
        predictions[predictions["task"].isin(tasks) & predictions["arm"].isin(JUDGED)],
        ("task", "item", "cluster"),
        "contribution",
        "test items and their clusters must be the same in every arm: probe again",
        scores.runs,
    )
    number = {task: i for i, task in enumerate(tasks)}
    task = np.array([number[name] for name in items.cells["task"].tolist()], dtype=np.intp)
    places, place = np.unique(items.cells["cluster"], return_inverse=True)
    size, x = np.bincount(task, minlength=len(tasks)), items.values
    mean = _sum_by(task, x, len(size)) / np.maximum(size, 1)
    for i, t in np.argwhere((np.abs(mean - u) > AGREE) | (size == 0)):
        arm, replicate = scores.runs[i]
        raise ValueError(
            f"arm {arm!r}, replicate {replicate!r}, task {tasks[t]!r}: contributions of "
            f"{size[t]} items average to {mean[i, t]:.6g} but the utility is {u[i, t]:.6g}; store "
            "the items that the score was made from"
        )
    e = _sum_by(place, (x - mean[:, task]) / (size[task] * len(size)), len(places))
    seen = np.zeros((len(size), len(places)), dtype=int)
    seen[task, place] = 1
    stratum_of_task = connected_components(seen @ seen.T, directed=False)[1]
    return Measured(
        names,
        utility,
        items={arm: x[of] for arm, of in rows_of.items()},
        by_place={arm: e[of] for arm, of in rows_of.items()},
        places=places,
        stratum=stratum_of_task[seen.argmax(axis=0)].astype(np.intp),
        clusters=dict(zip(map(str, tasks), map(int, seen.sum(axis=1)), strict=True)),
    )


def _sum_by(labels: NDArray[np.intp], values: Floats, n: int) -> Floats:
    """Sums over the columns of each of ``n`` labels: (runs, items) to (runs, n)."""
    return np.stack([np.bincount(labels, row, n) for row in values])


def mean_squares(weights: Mapping[str, float], measured: Measured) -> tuple[Squares, Squares]:
    """The runs' and the places' mean squares with their df; all of them add up to the variance.

    Two-way random effects. Let cluster g of G add to the utility of replicate r of arm a
        y[a,g,r] = (μ[a] + A[a,r] + C[a,g] + I[a,g,r]) / G,  U[a,r] = Σ_g y[a,g,r],
    with A and I independent, of variance σ²_A and σ²_I in each arm, and C correlated between arms
    because the places are the same; σ²_C is the variance of Σ c C. Then Σ c mean_r U has
        V = Σ c² σ²_A / R  +  σ²_C / G  +  Σ c² σ²_I / (R G).
    E[Σ c² S² / R] = Σ c² (σ²_A + σ²_I / G) / R: the first and the third term.
    E[V_items]     = σ²_C / G + Σ c² σ²_I / (R G): the second and again the third.
    E[W]           = Σ c² σ²_I / (R G), since the residuals of I have (G − 1)(R − 1) df.
    So Σ c² S² / R + max(0, V_items − W) counts each term once. Under normality the mean squares are
    independent. Tasks that share no place, even through others, are centred apart: each such
    stratum has its own G, V_items and W.
    """
    runs, places = Squares(), Squares()
    for arm, weight in weights.items():
        u = measured.utility[arm]
        runs.append((weight**2 * float(u.var(ddof=1)) / len(u), len(u) - 1))
    sizes = np.bincount(measured.stratum)
    for stratum in np.flatnonzero(sizes > 1):
        g, within = int(sizes[stratum]), measured.stratum == stratum
        difference, squares = np.zeros(g), Squares()
        for arm, weight in weights.items():
            e = measured.by_place[arm][:, within]  # (r, g)
            r, mean = len(e), e.mean(axis=0)
            w = float(((e - mean) ** 2).sum()) * g / ((g - 1) * (r - 1) * r)
            squares.append((-(weight**2) * w, (g - 1) * (r - 1)))
            difference += weight * mean
        squares.append((float(difference @ difference) * g / (g - 1), g - 1))
        if sum(square for square, _ in squares) > 0:
            places += squares
    return runs, places


def generalist(
    measured: Mapping[str, Measured], specialist: Role
) -> tuple[dict[str, float], Measured]:
    """Ψ as one contrast: the mix, averaged over K targets, against one specialist for each.

    One mix run serves all targets, so its replicate's utility is the mean over them; the specialists
    are runs of their own, each with the weight −1/K. A place that several targets share is one place.

    Args:
        measured: by target.
        specialist: the arm that stands for a part.

    Returns:
        The weights, and what they weigh.

    Raises:
        ValueError: if a mix run was not probed on every target.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    targets = list(measured)
    names = [part.replicates[Role.MIX].tolist() for part in measured.values()]
    for target, replicates in zip(targets, names, strict=True):
        if replicates != names[0]:
            raise ValueError(
                f"mix has replicates {names[0]} on {targets[0]} but {replicates} on {target}; "
                "probe every mix run on every sensor"
            )
    mix, share, n = str(Role.MIX), 1 / len(targets), len(names[0])
    weights = {mix: 1.0} | {f"{specialist} {target}": -share for target in targets}
    utility = {mix: share * np.sum([m.utility[mix] for m in measured.values()], axis=0)}
    runs = {mix: measured[targets[0]].replicates[mix]}
    # Places by name over all targets, and which are linked by a stratum of any of them.
    places = np.unique(np.concatenate([m.places for m in measured.values()]))
    by_place = {mix: np.zeros((n, len(places)))}
    links, strata = [], 0
    for target, part in measured.items():
        arm, at = f"{specialist} {target}", np.searchsorted(places, part.places)
        utility[arm], runs[arm] = part.utility[specialist], part.replicates[specialist]
        if part.items:
            by_place[mix][:, at] += share * part.by_place[mix]
            by_place[arm] = np.zeros((len(utility[arm]), len(places)))
            by_place[arm][:, at] = part.by_place[specialist]
            links.append(np.stack([part.stratum + strata, at]))
            strata += int(part.stratum.max()) + 1
    stratum = np.zeros(0, dtype=np.intp)
    if links:
        stratum_of, place = np.concatenate(links, axis=1)
        size = strata + len(places)
        graph = coo_array((np.ones(len(place)), (stratum_of, strata + place)), shape=(size, size))
        linked = connected_components(graph, directed=False)[1][strata:]
        stratum = np.unique(linked, return_inverse=True)[1].astype(np.intp)
    items = {arm: x for part in measured.values() for arm, x in part.items.items()}
    clusters = {task: g for part in measured.values() for task, g in part.clusters.items()}
    return weights, Measured(
        runs, utility, items, by_place if links else {}, places, stratum, clusters
    )


def lead(
    runs: Floats, floor: Floats, cluster: Names, confidence: float = 0.95
) -> tuple[float, float]:
    """By how much an arm beats a floor that no run stands behind, on one task.

    Args:
        runs: (r, n) contributions of n test items in r replicates.
        floor: (n,) contributions of the same items to the floor's score.
        cluster: (n,) the items' clusters.
        confidence: of the two-sided interval.

    Returns:
        The mean difference and the lower end of its t interval, which carries the variance between
        clusters of items and, if there are several, between runs (Satterthwaite's degrees of freedom).
    """
    from scipy.stats import t

    ahead = runs.mean(axis=0) - floor
    _, place = np.unique(cluster, return_inverse=True)
    sums = np.bincount(place, weights=ahead - ahead.mean())
    g, r, n = len(sums), len(runs), len(floor)
    if g < 2:
        return float(ahead.mean()), -np.inf
    parts = [(float((sums**2).sum() * g / (g - 1) / n**2), g - 1)]
    if r > 1:
        parts.append((float(runs.mean(axis=1).var(ddof=1) / r), r - 1))
    variance = sum(square for square, _ in parts)
    if variance == 0:
        return float(ahead.mean()), float(ahead.mean())
    df = variance**2 / sum(square**2 / freedom for square, freedom in parts)
    reach = float(t.ppf((1 + confidence) / 2, df)) * variance**0.5
    return float(ahead.mean()), float(ahead.mean() - reach)
