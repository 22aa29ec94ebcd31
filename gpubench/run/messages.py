"""What driver, agent and workers say to each other: one JSON object a line, never pickled."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from gpubench.record import Parity
from gpubench.samples import Samples
from gpubench.suite import Cell, Policy, Workload


class Preload(Struct, frozen=True, tag=True):
    """Import these modules once, in the server that workers are forked from."""

    modules: list[str]
    cache_dir: str


class BuildReference(Struct, frozen=True, tag=True):
    """Make the images and the reference answers of a workload."""

    workload: Workload
    policy: Policy


class Prepare(Struct, frozen=True, tag=True):
    """Make what the backend's ``open`` needs."""

    cell: Cell
    cores: tuple[int, ...]
    timeout_s: float


class Measure(Struct, frozen=True, tag=True):
    """Measure one repeat of a cell: one fresh worker a replica."""

    cell: Cell
    policy: Policy
    artefact: str
    reference: str
    cores: list[tuple[int, ...]]
    """Per replica, on CPU; empty tuples on CUDA, where replica i owns GPU i."""


Request = Preload | BuildReference | Prepare | Measure


class Progress(Struct, frozen=True, tag=True):
    """A step of the request in hand was reached."""

    step: str
    p50_ns: float = 0.0


class Failure(Struct, frozen=True, tag=True):
    """The request failed; ``kind`` is a key of record.FAILURES, or 'unavailable'."""

    kind: str
    reason: str
    remedy: str = ""


class Preloaded(Struct, frozen=True, tag=True):
    """Answer to Preload: the modules that could not be imported, and why."""

    errors: dict[str, str]
    seconds: float


class Prepared(Struct, frozen=True, tag=True):
    """Answer to BuildReference and Prepare; ``ns`` is each step's cost when it was done."""

    path: str
    ns: dict[str, int]


class Outcome(Struct, frozen=True, tag=True):
    """One replica's result."""

    samples: Samples
    parity: Parity | None
    facts: dict[str, Any]
    flags: list[str]


class Done(Struct, frozen=True, tag=True):
    """Answer to Measure: every replica's result and what was seen meanwhile."""

    outcomes: list[Outcome]
    parity: Parity | None
    """Over all replicas."""
    telemetry: dict[str, Any]
    flags: list[str]
    invalid: bool


Reply = Progress | Failure | Preloaded | Prepared | Done


class Go(Struct, frozen=True, tag=True):
    """Agent to worker: pass the barrier when the clock reads ``at_ns``."""

    at_ns: int


class AtBarrier(Struct, frozen=True, tag=True):
    """Worker to agent: waiting for Go."""

    name: str
    p50_ns: float = 0.0


WorkerMessage = AtBarrier | Outcome | Prepared | Preloaded | Failure
