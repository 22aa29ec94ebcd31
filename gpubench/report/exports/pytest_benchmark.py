"""JSON of pytest-benchmark, for `pytest-benchmark compare` and whatever else reads its files.

Its unit of observation, a round, is here a repeat (a fresh process): ``data`` holds one value for
each, which is the median seconds per batch of the latency scenario, and seconds per image of the
throughput scenario (so that ``ops`` is images/s). Names and groups are those of gpubench's pytest
plug-in, when it measures the suite file: each can be the other's baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from gpubench import escape
from gpubench.analysis.summary import Summary
from gpubench.errors import InputError
from gpubench.records.record import Header, RecordFile
from gpubench.report.exports.naming import (
    GROUPS,
    candidates,
    extra_info,
    params,
    rounds_s,
    tests,
)


def render(files: Sequence[RecordFile]) -> bytes:
    """One file describes one machine: InputError for runs of machines that differ."""
    from pytest_benchmark import __version__

    cells = tests(files)
    heads = [f.header for f in candidates(files)]
    if len({head.fingerprint for head in heads}) > 1:
        raise InputError(
            "pytest-benchmark's format holds one machine, and these runs were made on machines "
            "that differ: export each run into a file of its own"
        )
    document = {
        "machine_info": _machine(heads[0].environment),
        "commit_info": _commit(heads[0]),
        "benchmarks": [_benchmark(name, s) for name, s in cells.items()],
        "datetime": _time(heads[0].started),
        "version": __version__,
    }
    return escape.document(document).encode()


def _benchmark(fullname: str, s: Summary) -> dict[str, Any]:
    return {
        "group": GROUPS[s.cell.scenario],
        "name": fullname.partition("::")[2],
        "fullname": fullname,
        "params": params(s.cell),
        "param": s.cell.label,
        "extra_info": extra_info(s) | {"run": s.run},
        "options": {"timer": "perf_counter_ns", "disable_gc": True, "warmup": True,
                    "min_rounds": s.policy.repeats},
        "stats": _stats(s),
    }  # fmt: skip


def _stats(s: Summary) -> dict[str, Any]:
    """pytest-benchmark's own statistics of the repeat values, in seconds."""
    from pytest_benchmark.stats import Stats

    stats = Stats()  # type: ignore[no-untyped-call]
    for seconds in rounds_s(s):
        stats.update(seconds)  # type: ignore[no-untyped-call]
    return {**stats.as_dict(), "data": stats.data, "iterations": 1}  # type: ignore[no-untyped-call]


def _machine(environment: dict[str, Any]) -> dict[str, Any]:
    """pytest-benchmark's own keys, then what else tells machines apart."""
    cpu, system, python = (environment.get(key) or {} for key in ("cpu", "os", "python"))
    return {
        "node": environment.get("host"),
        "processor": cpu.get("model"),
        "machine": cpu.get("machine"),
        "python_implementation": python.get("implementation"),
        "python_version": python.get("version"),
        "release": system.get("kernel"),
        "system": system.get("system"),
        "cpu": {"brand_raw": cpu.get("model"), "arch_string_raw": cpu.get("machine"),
                "count": cpu.get("logical"), "flags": cpu.get("flags")},
        "gpus": environment.get("gpus") or [],
        "libraries": environment.get("libraries") or {},
    }  # fmt: skip


def _commit(head: Header) -> dict[str, Any]:
    """Of the directory that the run was started in."""
    where = head.environment.get("directory") or {}
    return {
        "id": where.get("commit") or "unversioned",
        "time": None,
        "author_time": None,
        "dirty": bool(where.get("dirty")),
        "project": head.suite.name,
        "branch": "(unknown)",
    }


def _time(started: str) -> str:
    """ISO 8601 with '+00:00', which readers older than Python 3.11 need."""
    try:
        return datetime.fromisoformat(started).isoformat()
    except ValueError:
        return started
