"""Measure a whole space, so that searches can be replayed on it: 81 configurations, five rounds.

    uv run python -m tests.benchmarks.tune.record -o DIR

An ordinary run of an ordinary suite (`gpubench report DIR` reads it): ResNet-50 with probe weights
on digits, boundary ``transfer``, one batch at a time, on two CPU cores. In every round each
configuration is measured once in fresh processes, in fresh random order. Interrupted, it goes on
where it was with the same command. `--limit 3` tries three configurations of the space;
`--rounds 3` is content with three rounds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.machine import environment
from gpubench.machine.cores import usable_cores
from gpubench.records.record import Header
from gpubench.run import driver, plan, progress, record_builder
from gpubench.suite import types
from gpubench.suite.types import Cell, OptionValue, Policy, Precision

CORES = 2
ROUNDS = 5
BATCH_SIZES = (1, 2, 4, 8, 16)
REPLICAS = (1, 2)
MOST_IN_FLIGHT = 16
"""Images of all replicas at the same time: more are slow to measure, and no faster."""
WAYS: tuple[tuple[str, Precision, dict[str, OptionValue]], ...] = (
    ("torch-eager", "fp32", {}),
    ("torch-eager", "fp32", {"memory_format": "channels_last"}),
    ("torch-eager", "bf16", {}),
    ("torch-eager", "bf16", {"memory_format": "channels_last"}),
    ("onnxruntime", "fp32", {}),
    ("onnxruntime", "int8", {}),
    ("openvino", "fp32", {}),
    ("openvino", "bf16", {}),
    ("openvino", "int8", {}),
)
"""Options at their default are left out, as a search does."""
POLICY = Policy(
    repeats=ROUNDS,
    max_repeats=ROUNDS,
    warmup_iterations=3,
    warmup_s=0.2,
    duration_s=0.5,
    parity_images=16,
    accuracy_images=128,
)
AXES = types.Axes(
    backend=tuple(dict.fromkeys(backend for backend, _, _ in WAYS)),
    device="cpu",
    precision=tuple(dict.fromkeys(precision for _, precision, _ in WAYS)),
    batch_size=BATCH_SIZES,
    replicas=REPLICAS,
    scenario=("latency",),
    boundary=("transfer",),
    options={"torch-eager": {"memory_format": ("contiguous", "channels_last")}},
)
SUITE = types.Suite(
    name="tune-resnet50",
    description="Every configuration of a space, so that searches can be replayed on it",
    workload=types.Workload(model="resnet50", weights="probe", images="digits"),
    axes=AXES,
    policy=POLICY,
    baseline="torch-eager",
)


def cells(ways: Sequence[tuple[str, Precision, dict[str, OptionValue]]] = WAYS) -> list[Cell]:
    """The space."""
    return [
        Cell(
            backend=backend,
            device="cpu",
            model="resnet50",
            weights="probe",
            images="digits",
            precision=precision,
            batch_size=batch_size,
            replicas=replicas,
            cores=CORES // replicas,
            scenario="latency",
            boundary="transfer",
            options=options,
        )
        for (backend, precision, options), replicas, batch_size in itertools.product(
            ways, REPLICAS, BATCH_SIZES
        )
        if batch_size * replicas <= MOST_IN_FLIGHT
    ]


def today(found: Sequence[Cell]) -> list[Cell]:
    """Of ``found``, the cells of today's default: what nobody has tuned."""
    return [
        c for c in found
        if (c.backend, c.precision, c.replicas, c.options) == ("torch-eager", "fp32", 1, {})
    ]  # fmt: skip


def measure(out: Path, chosen: Sequence[Cell], rounds: int) -> int:
    """Measure what ``out`` lacks of all rounds of ``chosen``; the exit code."""
    asked = replace(SUITE, policy=replace(POLICY, repeats=rounds, max_repeats=rounds))
    cores = usable_cores()
    if len(cores) < CORES:
        print(f"needs {CORES} usable cores, this machine has {len(cores)}", file=sys.stderr)
        return 2
    backends = {name: base.get(name) for name in AXES.backend}
    planned = plan.make(asked, chosen, backends, cores[:CORES], 0)
    command = ["python", "-m", "tests.benchmarks.tune.record", *sys.argv[1:]]
    here = environment.collect(command)
    job = driver.RunJob(
        plan=planned,
        backends=backends,
        header=Header(
            run_id=uuid.uuid4().hex[:12],
            suite=asked,
            environment=here,
            fingerprint=environment.fingerprint_of([here]),
            command=command,
            started=record_builder.now(),
            planned=planned.planned,
            seed=POLICY.seed,
        ),
        out=out,
        cache_dir=Cache(None).root,
        resume=(out / "records.jsonl").exists(),
    )
    with progress.Lines(Console()) as watcher:
        file = driver.run(job, watcher)
    wrong = [r for r in file.records if r.status != "ok"]
    print(f"{len(file.records)} records in {out}, {len(wrong)} of them not ok")
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory of the run")
    parser.add_argument("--limit", type=int, metavar="N", help="only N configurations, spread out")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of all configurations")
    given = parser.parse_args()
    chosen = cells()
    if given.limit:
        chosen = chosen[:: max(1, len(chosen) // given.limit)][: given.limit]
    return measure(given.output, chosen, given.rounds)


if __name__ == "__main__":
    sys.exit(main())
