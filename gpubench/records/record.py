"""Results as they are stored: one header line, then one JSON line for each task.

Raw nanoseconds are stored and every statistic is derived when the file is read. Schemas 1 to 5 were
never released and are not read any more; 6 holds what 5 did. What came later has a default, and is
passed over by who does not know it: `Parity.answers`, `Record.changed`, fact ``artefact_bytes``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain
from statistics import median
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from gpubench.records import samples
from gpubench.records.parity import (
    Changed,
    Parity,
    PipelineCheck,
    over_replicas,
    worst_pipeline,
)
from gpubench.records.samples import Count, Ns, Samples
from gpubench.suite.goal import Search
from gpubench.suite.types import MIN_BLOCKS, MIN_SAMPLES, Cell, Natural, Rule, Suite

SCHEMA = 6
"""Of the files that are written, and the only one that is read."""

Arm = Literal["baseline", "candidate"]
Status = Literal["ok", "failed", "unavailable", "unsupported", "ruled-out"]

FAILURES = {
    "parity": "answers outside the tolerance: timing kept, never ranked",
    "out-of-memory": "the device or the host ran out of memory",
    "accuracy": "below the accuracy floor of the suite: timing kept, never ranked",
    "timeout": "a step outlasted its time-out",
    "crash": "a worker process died",
    "fallback": "something other than the asked-for device or provider ran",
    "error": "the backend raised",
    "node-lost": "a machine of the run died, hung or was cut off",
    "required": "skipped although --require names it",
    "gpu-lost": "the GPU fell off its bus: NVML no longer reaches it",
    "limit": "broke a limit of the search when it was measured again beside today's default",
    "not-run": "the run ended before this task was measured",
    "incomparable": "its rival in the A/B answers another question",
}

WRONG = ("parity", "accuracy")
"""Kinds of failure by answers alone: what was timed is shown, but never ranked."""

WIDE_INTERVAL = 0.25
"""Relative half-width of an interval from which its row is marked."""

FLAGS = {
    "DRIFT": "level or spread moved among the samples: the machine was still changing",
    "NO-STEADY-STATE": "warm-up detection would cut more than half of the samples",
    "GROUPED": "an iteration is so short that several share one sample",
    "FEW-SAMPLES": f"fewer than {MIN_BLOCKS} samples in a repeat, whose noise is most of the "
    f"interval, or fewer than {MIN_SAMPLES}: lengthen policy.duration_s",
    "WIDE-INTERVAL": f"the 95 % interval reaches more than {100 * WIDE_INTERVAL:g} % to either "
    "side: this row tells large differences only; measure more repeats, or a calmer machine",
    "NO-COMMON-WINDOW": "the replicas did not run at the same time",
    "BUSY-WHILE-IDLE": "this arm's threads ran while its rival was being measured, for more than "
    "1 % of the time of the cores in use; they spin: of onnxruntime `spinning = false` ends that, "
    "of torch OMP_WAIT_POLICY=passive",
    "INSTRUMENTED": "Python was traced, profiled or in a debug mode (facts name it): slower",
    "RECOMPILED": "a recompilation happened while sampling",
    "COMPILED-AT-OPEN": "opening compiled what preparing should have left in the cache: its "
    "cold start is not that of a deployment",
    "CPU-STEAL": "more than 2 % of the CPU time was taken by the hypervisor",
    "CPU-WITHHELD": "for more than 5 % of the time work was ready and had no core: a CPU quota, or "
    "other processes",
    "FROZEN": "its processes were stopped, or the machine was suspended, while it was measured",
    "CPU-BUSY": "other processes used more than 10 % of the replicas' cores",
    "THROTTLED": "the GPU lowered its clocks because of heat or power brake",
    "POWER-CAP": "the GPU ran at its software power cap",
    "CO-TENANT": "another process used the GPU",
    "UNWATCHED": "NVML gave up before the end: whether the GPU lowered its clocks, or others used "
    "it, is not known",
    "NODES-DIFFER": "the machines it ran on differ in driver, clocks or library versions",
    "NO-PARITY": "no reference for this workload: answers were not checked",
    "SPEED-ONLY": "random weights or synthetic images: parity says little about accuracy",
}
"""Validity flags: everything a reader must know before believing a number. A record has those of
its repeat, a row those that stand against the row: `gpubench.analysis.summary.Summary.flags`."""

ENERGY_S = 5.0
"""Counters move in steps, and power is a mean over up to a second: shorter windows say little."""

Amount = Annotated[float, Meta(ge=0, le=1e18)]
Rate = Annotated[float, Meta(ge=1, le=1e18)]


class Work(Struct, frozen=True, kw_only=True):
    """What a network costs, whatever computes it. Counts of numbers, not of bytes."""

    flops: Amount
    """Floating-point operations of one image's matrix products and convolutions; a multiplication
    and an addition are two."""
    weights: Amount
    """Numbers that are read once a batch."""
    activations: Amount
    """Numbers that the layers with products, and pooling, read and write for one image, when
    everything between them is fused into them."""
    ends: Amount
    """Numbers in one image and its logits: what must move even if all else stays in caches."""


class Ceiling(Struct, frozen=True, kw_only=True):
    """The roofline that one cell is held against: all its replicas together."""

    work: Work
    flops_per_s: Rate
    """Measured peak of matrix products in the cell's precision."""
    bytes_per_s: Rate
    """Measured bandwidth of memory."""
    precision: str
    """What the products of that peak were computed in: 'bf16'."""
    cache_bytes: Amount = 0.0
    """Of the caches that its replicas share: what may stay there from one batch to the next."""


class Record(Struct, frozen=True, kw_only=True):
    """One task's result; a skip and a failure are records too."""

    cell: Cell
    repeat: Natural
    status: Status
    kind: str = ""
    """For ``failed``: a key of FAILURES."""
    reason: str = ""
    remedy: str = ""
    replicas: list[Samples] = []
    again: list[Samples] = []
    """Interleaved A/B, both arms resident: the process' further turns one after the other, each in
    the order of replicas."""
    order: str = ""
    """Interleaved A/B: the pair's order of turns, such as 'ABBABAAB', or 'AB' (A: baseline)."""
    prepare_ns: Annotated[dict[str, Ns], Meta(max_length=1000)] = {}
    """What preparing cost when it was done (export, build, compile), by step, cached or not."""
    parity: Parity | None = None
    changed: Changed | None = None
    """Of an A/B's candidate, in the first pair, where some picture is."""
    pipeline: PipelineCheck | None = None
    """Boundary ``pipeline`` only."""
    ceiling: Ceiling | None = None
    """The roofline of its device and precision, measured in the same run."""
    telemetry: dict[str, Any] = {}
    """With ``energy``, where it counts: joules, seconds, source and idle_watts (or None) of the
    common window, see `gpubench.machine.telemetry.telemetry.Telemetry.energy`. With ``frozen_s``
    where its task was paused: for how long, as another process saw it."""
    contents: Annotated[dict[str, str], Meta(max_length=100)] = {}
    """SHA-256 of what the files and folders held that the workload names: 'model' (its weights
    too), 'images' (labels too), 'calibration'. They are equal in all records of a run."""
    facts: dict[str, Any] = {}
    """What really ran: providers, precision, versions, engine digest."""
    flags: list[str] = []
    invalidated: Natural = 0
    """Attempts thrown away because of outside evidence: heat, power brake, a co-tenant, a pause."""
    started: str = ""
    """UTC, ISO 8601."""
    wall_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0

    @property
    def visits(self) -> list[list[Samples]]:
        """Samples per replica, once for each time that the process had its turn."""
        every, n = [*self.replicas, *self.again], max(1, len(self.replicas))
        return [every[at : at + n] for at in range(0, len(every), n)]

    def replica_rates(self) -> list[float]:
        """Images/s of each replica inside the common window (of all visits); [] without one.

        Where the caches are seen to before each batch, of the batches' own time.
        """
        if self.cell.cache != "warm":
            return [
                self.cell.batch_size * sum(sum(s.batches) for s in turns) * 1e9
                / max(1, sum(sum(s.durations_ns) for s in turns))
                for turns in zip(*self.visits, strict=True)
            ]  # fmt: skip
        spans = [(s, window) for s in self.visits if (window := samples.window_ns(s))]
        total = sum(end - start for _, (start, end) in spans)
        rates = [0.0] * (len(self.replicas) if spans else 0)
        for visit, (start, end) in spans:
            for replica, rate in enumerate(samples.rates(visit, self.cell.batch_size)):
                rates[replica] += rate * (end - start) / total
        return rates

    def images_per_s(self) -> float | None:
        """Images completed by all replicas inside the common window / its length."""
        rates = self.replica_rates()
        return sum(rates) if rates else None

    def latencies_ns(self) -> list[float]:
        """Per-batch durations of all replicas and visits, while all replicas ran."""
        each = (
            s.batch_ns[inside]
            for visit in self.visits
            for s, inside in zip(visit, samples.window_slices(visit), strict=True)
        )
        return list(chain.from_iterable(each))

    def median_ns(self) -> float | None:
        """Median ns per batch, of all visits together."""
        found = self.latencies_ns()
        return median(found) if found else None

    def joules_per_image(self, *, above_idle: bool = False) -> float | None:
        """Energy in the common window (of all visits) / images completed there; None where none
        was counted, or for less than `ENERGY_S`.

        On a GPU that of the task's whole GPUs and nothing of the host; on a CPU that of all its
        packages, whoever used them. ``above_idle``: without what was drawn before the run.
        """
        energy, rate = self.telemetry.get("energy"), self.images_per_s()
        if self.cell.cache != "warm":  # whatever emptied the caches drew power, too
            return None
        if not energy or not rate or energy["seconds"] < ENERGY_S:
            return None
        watts: float = energy["joules"] / energy["seconds"]
        if above_idle:
            if energy.get("idle_watts") is None:
                return None
            watts -= energy["idle_watts"]
        return watts / rate if watts > 0 else None

    def peak_bytes(self) -> int | None:
        """Peak memory of all replicas: resident on the host and, on a GPU, their processes' on it.

        None where a replica, or the driver, did not tell.
        """
        each = [self.host_bytes()]
        each += [self.device_bytes()] if self.cell.device == "cuda" else []
        return sum(n or 0 for n in each) if all(each) else None

    def host_bytes(self) -> int | None:
        """Peak memory of all replicas on the host; None where one did not tell."""
        each = [s.peak_host_bytes for s in self.visits[-1]] if self.replicas else []
        return sum(each) if each and all(each) else None

    def device_bytes(self) -> int | None:
        """Peak memory of the replicas' processes on all GPUs; None where that was not told."""
        each = [gpu.get("own_memory_bytes_peak") or 0 for gpu in self.telemetry.get("gpus", [])]
        return sum(each) if each and all(each) else None

    def value(self) -> float | None:
        """The repeat's one number: median ns per batch (latency) or images/s (throughput)."""
        return self.images_per_s() if self.cell.scenario == "throughput" else self.median_ns()


def merged(records: Sequence[Record]) -> Record:
    """What workers, or nodes, measured of one task, as one; what is not summed is the first's."""
    parities = [record.parity for record in records if record.parity is not None]
    turns = zip(*(record.visits for record in records), strict=True)
    first, *later = ([x for own in turn for x in own] for turn in turns)
    pinned = [cores for record in records for cores in record.facts["pinned"]]
    return replace(
        records[0],
        replicas=first,
        again=[x for turn in later for x in turn],
        parity=over_replicas(parities) if parities else None,
        pipeline=worst_pipeline(record.pipeline for record in records),
        facts=records[0].facts | {"pinned": pinned},
        flags=[flag for record in records for flag in record.flags],
    )


class Pairing(Struct, frozen=True, kw_only=True):
    """What makes a run one arm of an interleaved A/B."""

    session: str
    """The same in both arms."""
    arm: Arm
    differs: str
    """How this arm was asked for: 'backend=onnxruntime', 'python=...', 'ref=main'."""
    rule: Rule
    rates: bool = False
    """Compared by images/s, whatever the scenario: of a search for throughput."""
    tree: str = ""
    """Of an A/B of commits: the folder that this arm has the repository's files in."""


class Header(Struct, frozen=True, kw_only=True):
    """First line of a record file."""

    schema: int = SCHEMA
    run_id: str
    suite: Suite
    environment: dict[str, Any]
    fingerprint: str
    command: list[str]
    started: str
    planned: list[Cell]
    """Every cell of the plan, so that a missing one is seen. The arms of an A/B plan the same
    number: the n-th of one is compared with the n-th of the other."""
    seed: Count = 0
    pairing: Pairing | None = None
    search: Search | None = None
    """What `gpubench tune` looked for; then ``planned`` is the space it looked in."""
    nodes: list[dict[str, Any]] = []
    """Environment of each machine by rank, where there are several; ``environment`` is rank 0's."""
    node_differences: list[str] = []
    """What differs between them and matters: 'node 1: libraries.torch 2.9.0, node 0: 2.10.0'."""


class RecordFile(Struct, frozen=True):
    """A record file in memory."""

    path: str
    """Where it lies, for people."""
    header: Header
    records: list[Record]
    notes: list[str] = field(default_factory=list)
    """Of the run as a whole: ``damage``, and the facts `NOTED`."""
    damage: list[str] = field(default_factory=list)
    """For example that the last line was cut off."""


RECORDS = "records.jsonl"
BESIDE = ("report.html", "best.toml", "result.json", "evidence")
"""What runs and searches leave beside their records in the end."""
IMAGES_SKIPPED = "images_skipped"
"""In `Record.facts`: '5 of 40: 3 truncated, 2 too large', of a folder that was not read whole."""
NETWORK = "network"
"""In `Record.facts`: what it answers with, unless logits, and what was made of its file."""
WEIGHTS_TAKEN = "weights_taken"
"""In `Record.facts`: which of the state dicts of a file, and what of the file was left out."""
LABELLING = "labelling"
"""In `Record.facts`: 'no accuracy: ...' and why, or 'labels: ...' and what is odd about them."""
SOAKED = "soaked"
"""In `Record.facts`: for how long it ran before anything was recorded (`Policy.soak_s`)."""
NOTED = {
    IMAGES_SKIPPED: "images skipped: ",
    WEIGHTS_TAKEN: "weights: ",
    NETWORK: "network: ",
    LABELLING: "",
    SOAKED: "all samples: ",
}
"""Facts that are a note of the whole run, said once -> what stands before them."""
ARTEFACT_BYTES = "artefact_bytes"
"""In `Record.facts`: of all files that the backend made of the model."""
COPIED_IN = "copied_in_bytes"
"""In `Record.facts`: what a batch takes."""
NO_CEILING = "no_ceiling"
"""In `Record.facts`: why there is no `Record.ceiling` although one was due."""
BEGIN = b'{"header":{'
"""How every record file begins."""


def encode(kind: str, value: Header | Record) -> bytes:
    """One line of a record file, with its checksum."""
    payload = msgspec.json.encode(value)
    return b'{"%s":%s,"crc":"%08x"}\n' % (kind.encode(), payload, zlib.crc32(payload))
