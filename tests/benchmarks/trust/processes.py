"""Processes whose truth is known, and traces that are not steady: log durations, drawn by numpy.

A trace is what one benchmark process would take for its iterations one after the other. All arrays
are logs of the cost relative to the level of the process; shape (processes, iterations).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import ndtr

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Floats]

NOISE = 0.03
"""Standard deviation of log durations within a process."""
LAUNCH = 0.01
"""Standard deviation of the level from process to process, where not said otherwise."""
SLOW, SLOW_SHARE = 0.15, 0.3
"""Bimodal: so much slower, so often."""
SPIKES = 0.03
"""Share of iterations that a Pareto spike hits."""


def noise(rng: np.random.Generator, n: int, k: int) -> Floats:
    """iid normal."""
    return rng.normal(0, NOISE, (n, k))


def launch(rng: np.random.Generator, n: int, sd: float = LAUNCH) -> Floats:
    """Levels, shape (n, 1)."""
    return rng.normal(0, sd, (n, 1))


def ar1(rng: np.random.Generator, n: int, k: int, phi: float) -> Floats:
    """Stationary from its first value on."""
    steps = rng.normal(0, NOISE * (1 - phi * phi) ** 0.5, (n, k))
    steps[:, 0] = rng.normal(0, NOISE, n)
    return np.asarray(lfilter([1.0], [1.0, -phi], steps, axis=1))


def pink(rng: np.random.Generator, n: int) -> Floats:
    """1/f noise, standardised; shape (n,)."""
    each = np.fft.rfftfreq(2 * n)
    each[0] = np.inf
    wave = rng.normal(size=len(each)) + 1j * rng.normal(size=len(each))
    series = np.fft.irfft(wave / np.sqrt(each), 2 * n)[:n]
    return np.asarray((series - series.mean()) / series.std())


def bimodal(rng: np.random.Generator, n: int, k: int) -> Floats:
    """Two modes, as of a clock that has two states."""
    return noise(rng, n, k) + SLOW * (rng.random((n, k)) < SLOW_SHARE)


def spiked(rng: np.random.Generator, n: int, k: int) -> Floats:
    """Lognormal, and rarely multiplied by a Pareto variable (shape 1.5: no variance)."""
    hit = rng.random((n, k)) < SPIKES
    return noise(rng, n, k) + hit * np.log1p(rng.pareto(1.5, (n, k)))


def warming(rng: np.random.Generator, n: int, k: int, most: float, longest: float) -> Floats:
    """An exponential settling from 10 % (or up to ``most``) within ``longest`` iterations."""
    height, length = rng.uniform(0.1, most, (n, 1)), rng.uniform(3, longest, (n, 1))
    return noise(rng, n, k) + np.log1p(height * np.exp(-np.arange(k) / length))


def _median(chance_of_second: float, second: Callable[[float], float]) -> float:
    """Median of a mixture of N(0, NOISE) and a part whose distribution function is ``second``."""

    def excess(x: float) -> float:
        first = (1 - chance_of_second) * float(ndtr(x / NOISE))
        return first + chance_of_second * second(x) - 0.5

    return float(brentq(excess, -1.0, 1.0, xtol=1e-12))


def _spike(x: float) -> float:
    """P(normal + log Pareto <= x), by integrating over the spike's size (it is exponential)."""
    size = np.linspace(0, 40, 400_001)
    return float(trapezoid(1.5 * np.exp(-1.5 * size) * ndtr((x - size) / NOISE), size))


STATIONARY: dict[str, tuple[Draw, Callable[[], float], str]] = {
    "iid lognormal": (noise, lambda: 0.0, "median of the lognormal"),
    "AR(1), 0.5": (lambda g, n, k: ar1(g, n, k, 0.5), lambda: 0.0, "level of the process"),
    "AR(1), 0.9": (lambda g, n, k: ar1(g, n, k, 0.9), lambda: 0.0, "level of the process"),
    "bimodal": (
        bimodal,
        lambda: _median(SLOW_SHARE, lambda x: float(ndtr((x - SLOW) / NOISE))),
        "median of the mixture, by root finding",
    ),
    "Pareto spikes": (
        spiked,
        lambda: _median(SPIKES, _spike),
        "median of the mixture, by root finding",
    ),
    "launch effect 3 %": (
        lambda g, n, k: noise(g, n, k) + launch(g, n, 0.03),
        lambda: 0.0,
        "mean log level over launches",
    ),
    "warm-up (by up to 50 %, in 15 iterations)": (
        lambda g, n, k: warming(g, n, k, 0.5, 15),
        lambda: 0.0,
        "the level it settles at",
    ),
}
"""Name -> (log durations around the level, log of the true median, the truth in words). Every
process has, besides, a launch effect of LAUNCH: without one no two processes would differ."""


def _time(k: int) -> Floats:
    return np.linspace(0, 1, k)


def drift(rng: np.random.Generator, n: int, k: int) -> Floats:
    """A straight line, 5 to 20 % up or down over the trace."""
    return rng.uniform(0.05, 0.2, (n, 1)) * rng.choice([-1, 1], (n, 1)) * _time(k)


def walk(rng: np.random.Generator, n: int, k: int) -> Floats:
    """A random walk, 10 % off after the trace (standard deviation)."""
    return np.asarray(rng.normal(0, 0.1 / k**0.5, (n, k)).cumsum(axis=1))


def shifts(rng: np.random.Generator, n: int, k: int) -> Floats:
    """Two changes of the level, by 5 to 15 % each: one early, one late."""
    level = np.zeros((n, k))
    for low, high in ((0.1, 0.4), (0.6, 0.9)):
        jump = rng.uniform(0.05, 0.15, (n, 1)) * rng.choice([-1, 1], (n, 1))
        level += jump * (_time(k) > rng.uniform(low, high, (n, 1)))
    return level


def early_shift(rng: np.random.Generator, n: int, k: int) -> Floats:
    """One change of the level, by 5 to 17 %, up or down, within the first half."""
    jump = rng.uniform(0.05, 0.17, (n, 1)) * rng.choice([-1, 1], (n, 1))
    return np.asarray(jump * (_time(k) > rng.uniform(0.1, 0.5, (n, 1))))


def endless(rng: np.random.Generator, n: int, k: int) -> Floats:
    """A warm-up as long as the trace."""
    height, length = rng.uniform(0.1, 0.5, (n, 1)), rng.uniform(0.3, 1.5, (n, 1))
    return np.asarray(height * np.exp(-_time(k) / length))


def waves(rng: np.random.Generator, n: int, k: int) -> Floats:
    """An oscillation of 5 to 15 % with a period of 0.8 to 2.5 times the trace."""
    height, period = rng.uniform(0.05, 0.15, (n, 1)), rng.uniform(0.8, 2.5, (n, 1))
    phase = rng.uniform(0, 2 * np.pi, (n, 1))
    return np.asarray(height * np.sin(2 * np.pi * _time(k) / period + phase))


def growing(rng: np.random.Generator, n: int, k: int) -> Floats:
    """A spread that grows to 10-20 % within the trace, around a level that stays."""
    return rng.uniform(0.1, 0.2, (n, 1)) * _time(k)


def leak(rng: np.random.Generator, n: int, k: int) -> Floats:
    """A level that grows by 10 to 30 %, faster and faster; so does the spread."""
    return rng.uniform(0.1, 0.3, (n, 1)) * _time(k) ** 2


UNSTEADY: dict[str, Draw] = {
    "linear drift": drift,
    "random walk": walk,
    "level shifts": shifts,
    "one early shift": early_shift,
    "endless warm-up": endless,
    "long-period oscillation": waves,
    "growing variance": growing,
    "leak": leak,
}
"""Name -> what changes, without noise: (processes, samples of a process)."""


def unsteady(name: str, shape: int | None = None) -> Draw:
    """Traces of a kind with 1 % noise; every process another, or all of the one shape."""
    change = UNSTEADY[name]

    def draw(rng: np.random.Generator, n: int, k: int) -> Floats:
        own = change(rng, n, k) if shape is None else change(np.random.default_rng(shape), 1, k)
        plain = rng.normal(0, 1, (n, k))
        if change is growing:
            return plain * (0.01 + own)
        return own + plain * (0.01 + (0.2 * own if change is leak else 0))

    return draw


STEADY: dict[str, Draw] = {
    name: STATIONARY[name][0] for name in STATIONARY if not name.startswith("warm-up")
}
