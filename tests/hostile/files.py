"""Record files with whatever in them, and a checksum that is right."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from gpubench.records.record import Header, Record
from gpubench.suite.goal import Goal, Limit, Metric
from gpubench.suite.types import Policy, Rule
from tests.report import make, make_pairs, make_pipelines, make_tunes

Path_ = tuple[str | int, ...]


def line(kind: str, value: Any) -> bytes:
    """As `gpubench.records.record` writes it, of any JSON."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b'{"%s":%s,"crc":"%08x"}\n' % (kind.encode(), body, zlib.crc32(body))


def write(path: Path, header: Any, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join([line("header", header), *(line("record", r) for r in records)]))
    return path


def plain(value: Header | Record) -> Any:
    return json.loads(msgspec.json.encode(value))


GPU = make.GPU | {
    "series": {"t_s": [0.0, 1.0], "sm_mhz": [1200.0, None], "temperature_c": [50, 60]}
}

ENERGY = {"joules": 500.0, "seconds": 6.0, "source": "nvml", "idle_watts": 20.0}

DISAGREEMENT = {
    "name": "digit 7", "answer": "3", "score": 0.75, "expected": "8", "expected_score": 0.5,
    "label": "8", "thumbnail": "/9j/2w==",
}  # fmt: skip


def run() -> tuple[Any, list[Any]]:
    """(header, records) of a run with two backends, replicas, and every field that may be there."""
    cells = make.grid(backends=("torch-eager", "onnxruntime"), batches=(1, 4), replicas=(1, 2))
    cells[0] = make.cell(options={"layout": "last", "graph": True, "level": 3})
    paths = make_pipelines.cells(backends=("openvino",), decoders=("pil", "turbo"))
    file = make.run(cells, repeats=2, samples=12, policy=Policy(repeats=2, max_repeats=2))
    whole = make_pipelines.run(paths, repeats=2)
    header = plain(replace(file.header, planned=[*cells, *paths]))
    header["node_differences"] = ["node 1: driver 2, node 0: 1"]
    header["nodes"] = [header["environment"], header["environment"]]
    records = [plain(r) for r in [*file.records, *whole.records]]
    for r in records:
        r["telemetry"] |= {
            "gpus": [GPU],
            "turns_s": [0.0],
            "energy": ENERGY,
            "cpu": {"mhz": {"min": 1.0, "max": 2.0}},
        }
        r["parity"] |= {"disagreeing": 1, "disagreements": [DISAGREEMENT]}
        r["flags"] = ["DRIFT"]
        r["facts"] |= {"images_skipped": "1 of 3: 1 truncated",
                       "labelling": "no accuracy: 4 folders", "providers": ["x"],
                       "deep": {"a": 1}}  # fmt: skip
    records[1] |= {"status": "failed", "kind": "crash", "reason": "signal 11", "remedy": "none"}
    records[1] |= {"replicas": [], "parity": None}
    for (
        r
    ) in records:  # what a thumbnail may hold is checked: tests/report/sections/test_pipeline.py
        for d in (r["parity"] or {}).get("disagreements", []):
            d["thumbnail"] = ""
    for s in records[-1]["replicas"]:
        s["stages_ns"] |= {"another": 7}
        s["counts"] = [1 + n % 2 for n in range(len(s["durations_ns"]))]
    records[-1] |= {"status": "failed", "kind": "accuracy", "reason": "92 % of 95 %"}
    records[2] |= {"status": "unavailable", "reason": "no GPU", "remedy": "buy one", "replicas": []}
    return header, records


def arms() -> list[tuple[Any, list[Any]]]:
    """The two arms of an interleaved A/B."""
    cells = make.grid(backends=("torch-eager",), batches=(1, 4), replicas=(1,))
    made = make_pairs.arms(cells, effect={0: 0.1}, rule=Rule(), seed=1)
    return [(plain(f.header), [plain(r) for r in f.records]) for f in made]


def search() -> tuple[Any, list[Any], list[tuple[Any, list[Any]]]]:
    """(header, records, the arms of its A/B) of a search with a limit."""
    goal = Goal(Metric("throughput"), (Limit(Metric("latency"), 9e6),))
    file = make_tunes.tune(make_tunes.space((1, 8), (1, 2)), goal, rounds=2, explored=28)
    best = max(file.records, key=lambda r: (r.repeat, r.images_per_s() or 0.0)).cell
    base = next(c for c in file.header.planned if c.key in file.header.search.baseline)
    made = make_tunes.evidence(best, base, pairs=7)
    arms = [(plain(f.header), [plain(r) for r in f.records]) for f in made]
    return plain(file.header), [plain(r) for r in file.records], arms


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where something stands: every value below, by keys and indices."""
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*at, index))


def changed(value: Any, at: Path_, change: Callable[[Any], Any]) -> Any:
    """A copy in which what stands at ``at`` has gone through ``change``."""
    if not at:
        return change(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(value[at[0]], at[1:], change)
    return copy
