"""What a comparison judges, and how much of each does not matter: ``--metric`` and ``[gate]``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct

from gpubench.errors import InputError
from gpubench.suite.types import Rule


class Metric(Struct, frozen=True):
    """Something that both arms have, and one may have more of."""

    margin: float
    """Where none is given: a share (0.02: 2 %), or a share of the pictures."""
    noise: Literal["pairs", "pictures", "none"]
    """Where its chance comes from: the pairs of processes, which pictures there are, or nowhere."""
    words: tuple[str, str]
    """Said of a candidate that is worse, and of one that is better."""
    help: str

    @property
    def points(self) -> bool:
        """Its margin and its effect are percentage points."""
        return self.noise == "pictures"


METRICS = {
    "speed": Metric(0.02, "pairs", ("slower", "faster"), "Latency p50, or images/s."),
    "p99": Metric(0.1, "pairs", ("slower at p99", "faster at p99"),
                  "Latency p99, of cells of the latency scenario with 100 batches a process."),
    "accuracy": Metric(0.005, "pictures", ("less accurate", "more accurate"),
                       "Top-1 accuracy on the same labelled pictures, in percentage points."),
    "agreement": Metric(0.01, "pictures", ("of the answers changed", ""),
                        "Answers equal to the baseline's, in percentage points."),
    "memory": Metric(0.05, "pairs", ("more host memory", "less host memory"),
                     "Peak memory of the replicas' processes on the host."),
    "device_memory": Metric(0.05, "pairs", ("more device memory", "less device memory"),
                            "Peak memory of the replicas' processes on their GPUs."),
    "size": Metric(0.01, "none", ("larger artefact", "smaller artefact"),
                   "Bytes of what the backend made of the model; compared exactly."),
    "cold_start": Metric(0.2, "pairs", ("slower to start", "faster to start"),
                         "From opening to the first answer, in a fresh process."),
    "preparation": Metric(0.5, "none", ("longer to prepare", "shorter to prepare"),
                          "Export, build and compile: told, and decided only where it is the same "
                          "artefact, since it is made once."),
}  # fmt: skip
"""By the name that a suite and ``--metric`` have for it; response time under load goes here."""


def words(said: Any) -> list[str]:
    """As `parse` takes them, of what a call from Python names: 'p99', ['p99=5%'], {'p99': 0.05}."""
    if isinstance(said, Mapping):
        return [f"{name}={margin}" for name, margin in said.items()]
    return [*map(str, said)] if isinstance(said, tuple | list | set) else [str(said)]


def parse(words: Iterable[str]) -> dict[str, float | None]:
    """['p99=5%', 'accuracy,size'] -> {'p99': 0.05, 'accuracy': None, 'size': None}.

    Margins as shares; of pictures they are given in percentage points. Raises InputError.
    """
    found: dict[str, float | None] = {}
    for word in (part.strip() for each in words for part in each.split(",")):
        name, given, text = word.partition("=")
        if (metric := METRICS.get(name)) is None:
            raise InputError(f"--metric {word!r}: expected one of {', '.join(METRICS)}")
        if name in found:
            raise InputError(f"--metric {word!r}: {name} is given twice")
        found[name] = _margin(word, metric, text) if given else None
    return found


def _margin(word: str, metric: Metric, text: str) -> float:
    share = metric.points or text.endswith("%")
    try:
        value = float(text.rstrip("% ")) / (100 if share else 1)
    except ValueError:
        value = -1.0
    if not (0 <= value < 1 and (value or metric.noise != "pairs")):
        example = "0.5 (percentage points)" if metric.points else "5% or 0.05"
        raise InputError(f"--metric {word!r}: expected a margin such as {example}")
    return value


def rule(
    gate: Mapping[str, float], words: Iterable[str] = (), delta: float | None = None,
    alpha: float | None = None,
) -> Rule:  # fmt: skip
    """What is judged: ``gate`` of the suite; ``words`` of ``--metric`` in its place.

    ``delta``: the margin of speed, before all others that are said.
    """
    own = {name: value / (100 if METRICS[name].points else 1) for name, value in gate.items()}
    asked = parse(words) or dict.fromkeys(own)
    known = {n: own.get(n, METRICS[n].margin) if v is None else v for n, v in asked.items()}
    speed = known.pop("speed", own.get("speed", Rule().delta))
    metrics = tuple((name, known[name]) for name in METRICS if name in known)
    chance: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    return Rule(delta=speed if delta is None else delta, metrics=metrics, **chance)
