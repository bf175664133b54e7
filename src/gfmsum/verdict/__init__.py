"""Verdict: the scores of the arms, and the test items behind them, turned into judged contrasts.

The replicate is the pretraining run, never the test item. Runs and places are both drawn from
something larger, so a contrast carries two variances: of runs, and of clusters of test items that
every arm shares. NumPy, SciPy, pandas and statsmodels are all that judging needs; anybody's scores
will do. ``python -m gfmsum.verdict --help`` says which columns they have.

:func:`judge` takes one target; :func:`~gfmsum.verdict.panel.judge_all` takes several, as one family, with
what can be said of them together.
"""

from gfmsum.verdict.design import CONTRASTS, Contrast, Design, Estimate, Kind, Verdict
from gfmsum.verdict.judging import detectable, holm, judge, satterthwaite
from gfmsum.verdict.text import table
from gfmsum.verdict.variance import lead

__all__ = [
    "CONTRASTS",
    "Contrast",
    "Design",
    "Estimate",
    "Kind",
    "Verdict",
    "detectable",
    "holm",
    "judge",
    "lead",
    "satterthwaite",
    "table",
]
