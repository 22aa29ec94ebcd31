"""What driver, agent and workers say to each other: one JSON object a line.

An agent of another gpubench may read it. Only a worker, which is forked from this one's own server,
gets its request as it is.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from gpubench.pipeline.core_split import StageTimes
from gpubench.records.record import Record, Work
from gpubench.suite.types import Cell, Input, Policy, Workload
from gpubench.workload.models.inspection import Inspection

PROTOCOL = 8
"""Raised whenever an agent, or a node, of another version would misread a request."""


class Preload(Struct, frozen=True, tag=True):
    """Import these modules once, in the server that workers are forked from."""

    modules: list[str]
    cache_dir: str
    environment: bool = False
    """Tell what `gpubench.machine.environment.collect` finds in the agent's interpreter."""


class BuildReference(Struct, frozen=True, tag=True):
    """Make the images and the reference answers of a workload."""

    workload: Workload
    policy: Policy
    input: Input = "float32"


class Prepare(Struct, frozen=True, tag=True):
    """Make what the backend's ``open`` needs."""

    cell: Cell
    cores: tuple[int, ...]
    timeout_s: float


class Count(Struct, frozen=True, tag=True):
    """Count the work in one image of a workload."""

    workload: Workload


class Inspect(Struct, frozen=True, tag=True):
    """Find out what the network of a workload is."""

    workload: Workload
    timeout_s: float


class Gauge(Struct, frozen=True, tag=True):
    """Measure how fast a device computes products, and how fast its memory is."""

    device: str
    """'cpu' or 'cuda'."""
    cores: tuple[int, ...]
    """On CPU: all of them together."""
    types: tuple[str, ...]
    """Of the products: 'fp32', 'tf32', 'fp16', 'bf16', 'int8'."""
    memory: bool
    """Whether its bandwidth is wanted too."""
    uuid: str = ""
    """On CUDA. The agent fills it in."""


class Measure(Struct, frozen=True, tag=True):
    """Measure one repeat of a cell, or a node's share of it: one fresh worker a replica."""

    cell: Cell
    policy: Policy
    artefact: str
    reference: str
    cores: list[tuple[int, ...]]
    """Per replica on this node: what it is pinned to; () where it is not. On CUDA the agent fills
    it in."""
    uuids: list[str] = []
    """Per device, on CUDA: 'GPU-...' or 'MIG-...'. The agent fills it in."""
    turns: int = 1
    """How often it samples, at most; between its turns it waits, and the rival has its own."""
    node: int = 0
    first: int = 0
    """The cell's number of this node's first replica."""
    times: StageTimes | None = None
    """Boundary ``pipeline``. The agent fills it in, by measurement, where there is a choice."""
    repeat: int = 0
    """Of the cell: the first checks more answers, see `gpubench.workload.reference.asked`."""

    @property
    def devices(self) -> int:
        """That its replicas on this node use."""
        return -(-len(self.cores) // self.cell.replicas_per_device)


class SplitCores(Struct, frozen=True, tag=True):
    """Agent to worker: find out how to share out the first replica's cores (`StageTimes`)."""

    measure: Measure


class Begin(Struct, frozen=True, tag=True):
    """Start a team, up to its first barrier: beside its rival, or as one of several nodes."""

    team: str
    measure: Measure


class Step(Struct, frozen=True, tag=True):
    """Let a team go on to its next barrier, or to its end.

    ``others``: its rivals' processes; where it is to sample it does once these are idle.
    """

    team: str
    others: list[int]
    timeout_s: float
    turns: int = 0
    """Told with the first turn: how many there will be; 0: as many as `Measure` says."""


class End(Struct, frozen=True, tag=True):
    """Kill a team, if there is one."""

    team: str


Request = (
    Preload
    | BuildReference
    | Prepare
    | Inspect
    | Count
    | Gauge
    | Measure
    | SplitCores
    | Begin
    | Step
    | End
)


START_TIMEOUT_S = 240.0
"""Of `Preload`: less than the driver waits for it."""
GAUGE_TIMEOUT_S = 120.0
"""Of `Count` and `Gauge`, which take about a second, and torch's import if it was not preloaded."""


def timeout_s(request: Request) -> float:
    """How long workers may take over it."""
    if isinstance(request, Prepare | Inspect | Step):
        return request.timeout_s
    if isinstance(request, BuildReference):
        return request.policy.prepare_timeout_s
    if isinstance(request, Begin | SplitCores):
        request = request.measure
    if isinstance(request, Measure):
        return request.policy.timeout_s
    return START_TIMEOUT_S if isinstance(request, Preload) else GAUGE_TIMEOUT_S


class Progress(Struct, frozen=True, tag=True):
    """A step of the request in hand was reached."""

    step: str
    p50_ns: float = 0.0


class Failure(Struct, frozen=True, tag=True):
    """The request failed; ``kind``: a key of record.FAILURES, or that of an error of ours."""

    kind: str
    reason: str
    remedy: str = ""


class Preloaded(Struct, frozen=True, tag=True):
    """Answer to Preload: the modules that could not be imported, and why."""

    errors: dict[str, str]
    seconds: float
    protocol: int = 1
    version: str = ""
    """Of the agent's gpubench."""
    environment: dict[str, Any] = {}


class Waiting(Struct, frozen=True, tag=True):
    """Answer to Begin, Step (and End): the team stands at this barrier; its processes."""

    barrier: str
    pids: list[int]
    batch_ns: float = 0.0
    """At 'warm', of its slowest replica; as ``sample_ns`` see `AtBarrier`."""
    sample_ns: float = 0.0
    rest_s: float = 0.0
    """At 'warm': for how long its threads went on to use CPU time."""


class Prepared(Struct, frozen=True, tag=True):
    """Answer to BuildReference and Prepare; ``ns`` is each step's cost when it was done."""

    path: str
    ns: dict[str, int]
    contents: dict[str, str] = {}
    """As `Record.contents`, as far as this step has met them."""


class Inspected(Struct, frozen=True, tag=True):
    """Answer to Inspect."""

    network: Inspection


class Counted(Struct, frozen=True, tag=True):
    """Answer to Count."""

    work: Work


class Gauged(Struct, frozen=True, tag=True):
    """Answer to Gauge, of one device."""

    flops_per_s: dict[str, float]
    """By type of the products; those that cannot be computed there are left out."""
    bytes_per_s: float
    """0: not asked for."""
    cache_bytes: float


class Done(Struct, frozen=True, tag=True):
    """Answer to Measure: what is stored of it, but for what only the driver knows. A worker's is
    its replica's."""

    record: Record
    invalid: bool = False
    """Whether outside evidence speaks against it (heat, power brake, a co-tenant)."""


Reply = Progress | Failure | Preloaded | Prepared | Inspected | Counted | Gauged | Waiting | Done


class Go(Struct, frozen=True, tag=True):
    """Agent to worker: pass the barrier; what is timed begins when the clock reads ``at_ns``."""

    at_ns: int
    iterations: int = 0
    """Of a job: batches of a unit."""
    units: int = 0
    """Of a job: each replica's share, where it is handed out beforehand."""
    turns: int = 0
    """As in `Step`."""
    others: list[int] = []
    """Processes of rivals, whose CPU time is counted while this one samples."""


FINISHED = "finished"
"""Barrier at the end of a job: whoever has no more of it disturbs nobody who has."""


class AtBarrier(Struct, frozen=True, tag=True):
    """Worker to agent: waiting for Go."""

    name: str
    p50_ns: float = 0.0
    batch_ns: float = 0.0
    """Of one batch as it will be sampled; at 'warm'."""
    sample_ns: float = 0.0
    """Of one sample, which may be a block of batches; at 'warm'."""


WorkerMessage = (
    AtBarrier | Done | Prepared | Inspected | Preloaded | Counted | Gauged | StageTimes | Failure
)
