"""L2-regularised linear models for a whole grid of strengths at once.

Of logistic regression, all strengths share their features, so one matrix product serves all of them; each has
its own L-BFGS memory and step. The problem is turned into the principal axes of the training features, where
the curvature of the logistic loss is bounded by a diagonal (Böhning 1992), and scaled by that bound: what makes
ill-conditioned features slow elsewhere is gone before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEMORY = 10  # pairs of steps and gradients that L-BFGS remembers
MOST_STEPS = 1000
TOLERANCE = 1e-5  # of the gradient's norm, beside that at the start
STALLED, WINDOW = 5e-6, 10  # share by which an objective must fall within so many steps
NOISE = 1e-6  # of an objective: rounding in single precision is a tenth of it
ARMIJO = 1e-4  # share of the promised decrease that a step must deliver

type Array = NDArray[np.float64]
type Rows = NDArray[np.int64]
type Cost = Callable[[Array, Rows], tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Logistic:
    """Fitted models, one for each strength: logits are ``x @ weight + bias``."""

    weight: Array  # (strengths, k, classes)
    bias: Array  # (strengths, classes)

    def logits(self, x: Array) -> Array:
        """Of features (n, k): (strengths, n, classes)."""
        return np.asarray(x @ self.weight + self.bias[:, None])


def ridge(x: Array, values: Array, strengths: Sequence[float]) -> tuple[Array, Array]:
    """Minimise, for each C in ``strengths``, C times the sum of squared errors plus the squared weights.

    The bias is not penalised.

    Args:
        x: (n, k) features.
        values: (n,).
        strengths: inverse regularisation, each above 0.

    Returns:
        Weights (strengths, k) and biases (strengths,).
    """
    centre, middle = x.mean(axis=0), values.mean()
    left, power, axes = np.linalg.svd(x - centre, full_matrices=False)
    seen = left.T @ (values - middle)
    shrunk = power / (power**2 + 1 / np.asarray(strengths, np.float64)[:, None])
    weight = (shrunk * seen) @ axes
    return weight, middle - weight @ centre


def logistic(x: Array, labels: Rows, strengths: Sequence[float]) -> Logistic:
    """Minimise, for each C in ``strengths``, C times the sum of log losses plus half the squared weights.

    The bias is not penalised; two classes are counted as one weight vector. This is the objective of
    scikit-learn's LogisticRegression.

    Args:
        x: (n, k) features.
        labels: (n,) class indices, 0 to classes - 1, at least two classes.
        strengths: inverse regularisation, each above 0.
    """
    n, k = x.shape
    classes = int(labels.max()) + 1
    centre = x.mean(axis=0)
    power, axes = np.linalg.eigh((x - centre).T @ (x - centre))
    # Single precision where the work is: its noise lies far below what a step must gain.
    z = np.concatenate([(x - centre) @ axes, np.ones((n, 1))], axis=1).astype(np.float32)
    # Mean losses, so that all strengths have gradients of one size.
    penalty = (1 + (classes == 2)) / (n * np.asarray(strengths, np.float64))[:, None]
    penalty = np.concatenate([np.repeat(penalty, k, axis=1), 0 * penalty], axis=1)
    bound = np.append(np.maximum(power, 0), n) / (2 * n)
    scale = (1 / np.sqrt(bound + penalty + 1e-12))[:, None]  # (strengths, 1, k + 1)
    penalty = penalty[:, None]
    items = np.arange(n)

    def cost(u: Array, active: Rows) -> tuple[Array, Array]:
        """The objectives (a,) and gradients (a, classes, k + 1) of scaled weights."""
        w = u * scale[active]
        logits = (w.reshape(-1, k + 1).astype(np.float32) @ z.T).reshape(len(active), classes, n)
        logits -= logits.max(axis=1, keepdims=True)
        chance = np.exp(logits)
        total = chance.sum(axis=1)
        loss = (np.log(total) - logits[:, labels, items]).mean(axis=1, dtype=np.float64)
        chance /= total[:, None]
        chance[:, labels, items] -= 1
        slope = (chance.reshape(-1, n) @ z).reshape(w.shape) / n
        pull = penalty[active] * w
        return loss + 0.5 * _dot(pull, w), (slope + pull) * scale[active]

    w = _minimise(cost, np.zeros((len(strengths), classes, k + 1))) * scale
    weight = axes @ w[..., :-1].swapaxes(1, 2)
    return Logistic(weight, w[..., -1] - centre @ weight)


def _minimise(cost: Cost, start: Array) -> Array:
    """L-BFGS on independent problems side by side, without those that have arrived."""
    u, active = start.copy(), np.arange(len(start))
    value, slope = cost(u, active)
    first = _norm(slope)
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
            bad = reached > value * (1 + NOISE) + ARMIJO * length * descent
            if not bad.any():
                break
            length[bad] /= 2
            trial[bad] = u[active[bad]] + length[bad, None, None] * direction[bad]
            reached[bad], leaning[bad] = cost(trial[bad], active[bad])
        steps.append(trial - u[active])
        turns.append(leaning - slope)
        before = [*before[1:], value]
        u[active], value, slope = trial, reached, leaning
        going = _norm(slope) > TOLERANCE * np.maximum(first[active], 1e-12)
        going &= before[0] - value > STALLED * value
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
