"""The rules that popular tools decide by, each on samples of two arms: is there a difference?

Arrays of durations, shape (cells, repeats, samples). A rule gives one yes or no for each cell.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from tests.benchmarks.trust.processes import Floats

Answers = NDArray[np.bool_]
RESAMPLES = 200


def _pooled(x: Floats) -> Floats:
    return x.reshape(len(x), -1)


def mann_whitney(rng: np.random.Generator, base: Floats, candidate: Floats) -> Answers:
    """p < 0.05 on pooled samples (benchstat's default, on iterations)."""
    found = mannwhitneyu(_pooled(base), _pooled(candidate), axis=1, method="asymptotic")
    return np.asarray(found.pvalue < 0.05)


def bootstrap(rng: np.random.Generator, base: Floats, candidate: Floats) -> Answers:
    """95 % bootstrap interval of the ratio of means lies beyond a noise band of 1 % (criterion)."""
    means = []
    for x in (_pooled(base), _pooled(candidate)):
        drawn = rng.integers(x.shape[1], size=(RESAMPLES, x.shape[1]))
        means.append(np.stack([x[:, row].mean(axis=1) for row in drawn]))
    low, high = np.quantile(means[1] / means[0], [0.025, 0.975], axis=0)
    return np.asarray((low > 1.01) | (high < 0.99))


def fixed_ratio(rng: np.random.Generator, base: Floats, candidate: Floats) -> Answers:
    """Means differ by more than 5 %."""
    ratio = _pooled(candidate).mean(axis=1) / _pooled(base).mean(axis=1)
    return np.asarray((ratio > 1.05) | (ratio < 1 / 1.05))


def smaller_noise(rng: np.random.Generator, base: Floats, candidate: Floats) -> Answers:
    """Means differ by more than the smaller of the arms' standard deviations over repeats."""
    a, b = base.mean(axis=2), candidate.mean(axis=2)
    sd = np.minimum(a.std(axis=1, ddof=1), b.std(axis=1, ddof=1))
    return np.asarray(np.abs(b.mean(axis=1) - a.mean(axis=1)) > sd)


RULES: dict[str, Callable[[np.random.Generator, Floats, Floats], Answers]] = {
    "Mann-Whitney, p < 0.05": mann_whitney,
    "bootstrap 95 %, noise band 1 %": bootstrap,
    "fixed ratio 5 %": fixed_ratio,
    "difference > smaller sd": smaller_noise,
}
