"""L2-regularised linear models for a whole grid of strengths, and several scalings of the features, at once.

Features are turned into their principal axes first. There ridge regression is a division, and of logistic
regression the curvature is bounded by a diagonal (Böhning 1992): scaled by that bound, what makes
ill-conditioned features slow elsewhere is gone before the first step. There are no more axes than items, so few
items make small problems however many features there are. All problems share their steps in lockstep; each has
its own L-BFGS memory and step length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MEMORY = 5  # pairs of steps and gradients that L-BFGS remembers
MOST_STEPS = 1000
TOLERANCE = 1e-5  # of the gradient's norm, beside that at the start
WINDOW = 10  # steps within which an objective must fall by a share, see Precision
ARMIJO = 1e-4  # share of the promised decrease that a step must deliver
HALVES = np.array([-0.5, 0.5])  # a difference of two classes, shared out among them
SMALL = 2**16  # numbers in the features: with no more, double precision costs nothing

type Array = NDArray[np.float64]
type Rows = NDArray[np.int64]
type Cost = Callable[[Array, Rows], tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Precision:
    """How exactly objectives are computed, and so how far they can be followed down."""

    dtype: type[np.floating]
    noise: float  # share of an objective that rounding may add
    stalled: float  # share that it must fall by within WINDOW steps


SINGLE = Precision(np.float32, 1e-6, 1e-5)
DOUBLE = Precision(np.float64, 1e-13, 1e-7)


@dataclass(frozen=True, slots=True)
class Axes:
    """Features in their principal axes: r of them, as many as features, or as items if these are fewer."""

    z: Array  # (n, r), of zero mean
    power: Array  # (r,), sums of squares of the columns of z
    turn: Array  # (k, r), from features to axes; a column of zeros for an axis without power
    centre: Array  # (k,)

    @classmethod
    def of(cls, x: Array) -> Axes:
        """From features (n, k), in time of n k min(n, k)."""
        centre = x.mean(axis=0)
        moved = x - centre
        n, k = x.shape
        if k <= n:
            power, turn = np.linalg.eigh(moved.T @ moved)
            return cls(moved @ turn, np.maximum(power, 0), turn, centre)
        power, left = np.linalg.eigh(moved @ moved.T)
        # Below this, an axis is rounding.
        size = np.where(power > 1e-12 * power[-1], np.sqrt(np.maximum(power, 0)), 0)
        turn = moved.T @ (left / np.where(size > 0, size, np.inf))
        return cls(left * size, size**2, turn, centre)


@dataclass(frozen=True, slots=True)
class Logistic:
    """Fitted models, one for each strength: logits are ``x @ weight + bias``."""

    weight: Array  # (strengths, k, classes)
    bias: Array  # (strengths, classes)

    def logits(self, x: Array) -> Array:
        """Of features (n, k): (strengths, n, classes)."""
        return np.asarray(x @ self.weight + self.bias[:, None])


def ridge(axes: Axes, values: Array, strengths: Sequence[float]) -> tuple[Array, Array]:
    """Minimise, for each C in ``strengths``, C times the sum of squared errors plus the squared weights.

    The bias is not penalised.

    Args:
        axes: of features (n, k).
        values: (n,).
        strengths: inverse regularisation, each above 0.

    Returns:
        Weights (strengths, k) and biases (strengths,).
    """
    middle = values.mean()
    seen = axes.z.T @ (values - middle)
    shrunk = seen / (axes.power + 1 / np.asarray(strengths, np.float64)[:, None])
    weight = shrunk @ axes.turn.T
    return weight, middle - weight @ axes.centre


def logistic(designs: Sequence[Axes], labels: Rows, strengths: Sequence[float]) -> list[Logistic]:
    """Minimise, for each C in ``strengths``, C times the sum of log losses plus half the squared weights.

    The bias is not penalised; two classes are counted as one weight vector. This is the objective of
    scikit-learn's LogisticRegression.

    Args:
        designs: axes of features (n, k): one or more sets of features of the same items, of one width.
        labels: (n,) class indices, 0 to classes - 1, at least two classes.
        strengths: inverse regularisation, each above 0.

    Returns:
        The models of each design.
    """
    n, r = designs[0].z.shape
    classes = int(labels.max()) + 1
    # Mean losses, so that all strengths have gradients of one size. The bias comes last.
    pull = 1 / (n * np.asarray(strengths, np.float64))
    penalty = np.tile(np.append(np.ones(r), 0) * pull[:, None], (len(designs), 1))
    # Of two classes, only what one has more than the other is sought.
    sought = classes if classes > 2 else 1
    power = np.stack([np.append(axes.power, n) for axes in designs]) / (
        (2 if sought > 1 else 4) * n
    )
    scale = 1 / np.sqrt(np.repeat(power, len(strengths), axis=0) + penalty + 1e-12)
    # Where classes come apart the loss all but vanishes, and single precision sees no way down.
    precision = DOUBLE if n * r <= SMALL else SINGLE
    z = np.stack([np.append(axes.z, np.ones((n, 1)), axis=1) for axes in designs])
    cost = _cost(z.astype(precision.dtype), labels, penalty[:, None], scale[:, None])
    u = _minimise(cost, np.zeros((len(penalty), sought, r + 1)), precision) * scale[:, None]
    w = u.swapaxes(1, 2) if sought > 1 else u.swapaxes(1, 2) * HALVES
    w = w.reshape(len(designs), len(strengths), r + 1, classes)
    found = []
    for axes, each in zip(designs, w, strict=True):
        weight = axes.turn @ each[:, :-1]
        found.append(Logistic(weight, each[:, -1] - axes.centre @ weight))
    return found


def _cost(z: NDArray[np.floating], labels: Rows, penalty: Array, scale: Array) -> Cost:
    """The objectives (a,) of some problems, and their slopes, at scaled weights (a, classes or 1, r + 1).

    Args:
        z: of designs, (designs, n, r + 1), the last column for the bias.
        labels: (n,).
        penalty, scale: (problems, 1, r + 1), a design's problems one after the other.
    """
    designs, n, width = z.shape
    starts = np.arange(designs + 1) * (len(penalty) // designs)
    items = np.arange(n)

    def cost(u: Array, active: Rows) -> tuple[Array, Array]:
        w = u * scale[active]
        sought = w.shape[1]
        thin = w.reshape(-1, width).astype(z.dtype)
        ends = np.searchsorted(active, starts) * sought
        parts = [slice(*pair) for pair in pairwise(ends.tolist())]
        logits = np.concatenate([thin[p] @ x.T for p, x in zip(parts, z, strict=True)])
        logits = logits.reshape(len(active), sought, n)
        if sought == 1:
            logits = logits * HALVES[:, None].astype(z.dtype)
        logits -= logits.max(axis=1, keepdims=True)
        right = logits[:, labels, items]
        chance = np.exp(logits, out=logits)
        total = chance.sum(axis=1)
        loss = (np.log(total) - right).mean(axis=1, dtype=np.float64)
        chance /= total[:, None]
        chance[:, labels, items] -= 1
        if sought == 1:
            chance = (HALVES @ chance).astype(z.dtype)
        rows = chance.reshape(-1, n)
        slope = np.concatenate([rows[p] @ x for p, x in zip(parts, z, strict=True)])
        pull = penalty[active] * w
        return loss + 0.5 * _dot(pull, w), (slope.reshape(w.shape) / n + pull) * scale[active]

    return cost


def _minimise(cost: Cost, start: Array, precision: Precision) -> Array:
    """L-BFGS on independent problems side by side, without those that have arrived."""
    u, active = start.copy(), np.arange(len(start))
    value, slope = cost(u, active)
    first = np.maximum(_norm(slope), 1e-12)
    before = [np.full(len(start), np.inf)] * WINDOW  # objectives, the oldest first
    steps: list[Array] = []
    turns: list[Array] = []
    for _ in range(MOST_STEPS):
        direction = -_two_loops(slope, steps, turns)
        descent = _dot(direction, slope)
        uphill = descent >= 0
        direction[uphill], descent[uphill] = -slope[uphill], -_dot(slope, slope)[uphill]
        length = np.ones(len(active))
        if not steps:
            length = np.minimum(1, 1 / np.maximum(_norm(slope), 1e-30))
        trial = u[active] + length[:, None, None] * direction
        reached, leaning = cost(trial, active)
        for _ in range(30):
            bad = reached > value * (1 + precision.noise) + ARMIJO * length * descent
            if not bad.any():
                break
            length[bad] /= 2
            trial[bad] = u[active[bad]] + length[bad, None, None] * direction[bad]
            reached[bad], leaning[bad] = cost(trial[bad], active[bad])
        steps.append(trial - u[active])
        turns.append(leaning - slope)
        before = [*before[1:], value]
        u[active], value, slope = trial, reached, leaning
        going = _norm(slope) > TOLERANCE * first[active]
        going &= before[0] - value > precision.stalled * value
        if not going.any():
            break
        active, value, slope = active[going], value[going], slope[going]
        before = [some[going] for some in before]
        steps = [some[going] for some in steps[-MEMORY:]]
        turns = [some[going] for some in turns[-MEMORY:]]
    return u


def _two_loops(slope: Array, steps: list[Array], turns: list[Array]) -> Array:
    """The inverse Hessian's estimate times the gradient (Nocedal & Wright, algorithm 7.4)."""
    out, pairs = slope.copy(), []
    for step, turn in zip(reversed(steps), reversed(turns), strict=True):
        curvature = _dot(step, turn)
        weight = np.where(curvature > 1e-14, _dot(step, out) / np.maximum(curvature, 1e-14), 0)
        out -= weight[:, None, None] * turn
        pairs.append((step, turn, curvature, weight))
    if steps:
        curvature = _dot(steps[-1], turns[-1])
        size = np.where(
            curvature > 1e-14, curvature / np.maximum(_dot(turns[-1], turns[-1]), 1e-30), 1
        )
        out *= size[:, None, None]
    for step, turn, curvature, weight in reversed(pairs):
        back = np.where(curvature > 1e-14, _dot(turn, out) / np.maximum(curvature, 1e-14), 0)
        out += (weight - back)[:, None, None] * step
    return out


def _dot(a: Array, b: Array) -> Array:
    return np.asarray(np.einsum("aij,aij->a", a, b))


def _norm(a: Array) -> Array:
    return np.sqrt(_dot(a, a))
