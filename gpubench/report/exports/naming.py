"""What the formats that keep a history share: which cells, and under which names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import msgspec

from gpubench import units
from gpubench.analysis.compare.verdicts import MACHINE
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import UNTRIED, Summary, flags_of, summarise
from gpubench.analysis.tables import accuracy
from gpubench.errors import InputError
from gpubench.records.record import RecordFile
from gpubench.suite.types import Cell


def candidates(files: Sequence[RecordFile]) -> list[RecordFile]:
    """The files less baselines of an A/B whose candidate is there as well."""
    sessions = {p.session for f in files if (p := f.header.pairing) and p.arm == "candidate"}
    own = [(f, f.header.pairing) for f in files]
    return [f for f, p in own if not (p and p.arm == "baseline" and p.session in sessions)]


def _has_place(s: Summary, sound: bool) -> bool:
    return s.ranked and bool(s.values) and not (sound and s.flags.keys() & {*MACHINE})


def named(files: Sequence[RecordFile], *, sound: bool = False) -> dict[str, Summary]:
    """Every cell of `candidates` with a result that may be ranked, under a name of its own.

    ``sound``: only those that no outside evidence stands against, for a format that has no place
    for flags. Raises InputError where there is none: an empty history entry would hide that.
    """
    found = [s for s in summarise(candidates(files)) if _has_place(s, sound)]
    if not found:
        where = ", ".join(f.path for f in files)
        raise InputError(f"{where}: no cell has a result to export; see `gpubench report` for why")
    return _distinct(found, [title(s.cell) for s in found])


def model(cell: Cell) -> str:
    """Of an .onnx file its name: where it lies differs between machines."""
    return PurePath(cell.model).name


def title(cell: Cell) -> str:
    """'resnet18 cpu onnxruntime fp32 b8 x2 latency': the same in every run, on every machine."""
    return f"{model(cell)} {cell.device} {cell.label}"


GROUPS = {
    "latency": "latency: time per batch",
    "throughput": "throughput: time per image; OPS: images/s",
}
"""pytest-benchmark's group where a test has none: tables must not mix the two units."""
ROUNDS = {"latency": "median time per batch", "throughput": "time per image"}


def short_name(cell: Cell) -> str:
    """pytest-benchmark's name: the label, without blanks, so that a shell needs no quotes."""
    return cell.label.replace(" ", "-")


def full_name(suite: str, name: str) -> str:
    """What pytest-benchmark finds a baseline by: 'ci.toml::torch-eager-fp32-b1-x1-latency', as of
    the suite file ``suite`` when pytest collects it, wherever it lies."""
    return f"{suite}.toml::{name}"


def tests(files: Sequence[RecordFile]) -> dict[str, Summary]:
    """As `named`, by `full_name`."""
    found = list(named(files).values())
    suites = {f.header.run_id: f.header.suite.name for f in files}
    return _distinct(found, [full_name(suites[s.run], short_name(s.cell)) for s in found])


def _distinct(summaries: Sequence[Summary], names: list[str]) -> dict[str, Summary]:
    """Only names that occur twice get longer: a history must not depend on its neighbours."""
    for more in ("[{0.key}]", "@ {0.run}"):
        count = Counter(names)
        names = [f"{name} {more.format(s)}" if count[name] > 1 else name
                 for s, name in zip(summaries, names, strict=True)]  # fmt: skip
    return dict(zip(names, summaries, strict=True))


def params(cell: Cell) -> dict[str, Any]:
    """pytest-benchmark's, for ``--benchmark-group-by=param:batch_size``: axes and options."""
    known: dict[str, Any] = msgspec.to_builtins(cell)
    return {**known.pop("options"), **known}


def rounds_s(s: Summary) -> list[float]:
    """pytest-benchmark's rounds, s: one a repeat, of a batch, or of throughput of an image."""
    if s.cell.scenario == "throughput":
        return [1 / rate for rate in s.values.values()]
    return [ns / 1e9 for ns in s.values.values()]


def extra_info(s: Summary, timed: bool = True) -> dict[str, Any]:
    """What pytest-benchmark has no place for, JSON-able; ``timed``: with times, as in our tables.

    ``value_s``: of a round, over the repeats; ``interval_s``: its 95 % interval, None: there is
    none.
    """
    found: dict[str, Any] = {
        "cell": s.key, "label": s.cell.label, "flags": flags_of(s), "parity": s.parity,
        "pipeline": s.pipeline, "accuracy": accuracy.accuracy(s),
    }  # fmt: skip
    if timed and s.values:
        latency, bounds = s.cell.scenario == "latency", interval(s.value) or []
        assert s.value.value  # noqa: S101  # of values there is a mean
        middle, *ends = (v / 1e9 if latency else 1 / v for v in (s.value.value, *bounds))
        found |= {
            "round": f"{ROUNDS[s.cell.scenario]} of one repeat (a fresh process), s",
            "value_s": middle,
            "interval_s": sorted(ends) or None,
            "images_per_s": s.throughput.value,
        }
    made: dict[str, Any] = msgspec.to_builtins(found)
    return made


def left_out(files: Sequence[RecordFile], *, sound: bool = False) -> list[str]:
    """'label: status' of every cell that has no place in a history (failed, skipped, missing).

    What a search did not measure is one line. ``sound``: as for `named`.
    """
    gone = [s for s in summarise(candidates(files)) if not _has_place(s, sound)]
    untried = sum(s.status in UNTRIED for s in gone)
    return [
        f"{title(s.cell)}: {s.status if not s.ranked else ', '.join(flags_of(s)) or 'no samples'}"
        for s in gone
        if s.status not in UNTRIED
    ] + ([f"{units.count(untried, 'cell')} that a search did not measure"] if untried else [])


def measures(s: Summary) -> dict[str, Estimate]:
    """Time per batch, in ns, where each was waited for; images/s of the other scenario too."""
    latency = {"latency": s.p50} if s.cell.scenario == "latency" else {}
    return latency | ({"throughput": s.throughput} if s.rates else {})


def interval(e: Estimate, factor: float = 1.0) -> list[float] | None:
    """[low, high] of the 95 % interval, or None."""
    return None if e.low is None or e.high is None else [e.low * factor, e.high * factor]
