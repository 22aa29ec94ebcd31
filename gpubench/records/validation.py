"""What record files may hold beyond their types.

They come from other machines and other people, so what msgspec accepts and no run could have
written is refused on reading, and by whoever writes, before it is on disk. Readers rely on it: the
environment and the telemetry, which are plain JSON, have the shape that is read from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from gpubench import escape
from gpubench.records.record import Header, Record

DEEPEST = 32
"""Nesting of plain JSON: nothing here goes deeper than ten, and Python recurses through it."""
LARGEST = 2**63


class _Spread(Struct, frozen=True):
    min: float
    max: float


class _Series(Struct, frozen=True):
    t_s: list[float] = []
    sm_mhz: list[float | None] = []
    temperature_c: list[float | None] = []


class _Gpu(Struct, frozen=True):
    index: int = 0
    series: _Series = _Series()
    own_memory_bytes_peak: Annotated[int, Meta(ge=1, le=2**48)] | None = None


class _Cpu(Struct, frozen=True):
    mhz: _Spread | None = None


class _Energy(Struct, frozen=True):
    joules: Annotated[float, Meta(ge=0, le=1e15)]
    seconds: Annotated[float, Meta(gt=0, le=1e9)]
    source: Literal["nvml", "nvml-power", "rapl", "board"]
    idle_watts: Annotated[float, Meta(ge=0, le=1e9)] | None = None


class _Telemetry(Struct, frozen=True):
    turns_s: list[float] = []
    cpu: _Cpu = _Cpu()
    gpus: list[_Gpu] = []
    energy: _Energy | None = None


class _Part(Struct, frozen=True):
    version: str | None = None
    kernel: str | None = None
    total_bytes: int | None = None


class _Directory(Struct, frozen=True):
    commit: str | None = None


class _Limits(Struct, frozen=True):
    cpus: float | None = None


class _Environment(Struct, frozen=True):
    gpubench: _Part = _Part()
    python: _Part = _Part()
    os: _Part = _Part()
    memory: _Part = _Part()
    limits: _Limits = _Limits()
    directory: _Directory = _Directory()
    cpu: dict[str, Any] = {}
    gpus: list[dict[str, Any]] = []
    libraries: dict[str, Any] = {}
    variables: dict[str, Any] = {}


def header(found: Header) -> None:
    """Raises ValueError for what no run could have written."""
    _plain("header", msgspec.to_builtins(found))
    for environment in (found.environment, *found.nodes):
        _shaped("environment", environment, _Environment)


def record(found: Record) -> None:
    """The same; called for every record that is read."""
    for turn in found.visits:
        if len(turn) != found.cell.replicas:
            many = found.cell.replicas
            raise ValueError(f"samples of {len(turn)} replicas, but the cell has {many}")
        if len({(s.node, s.replica) for s in turn}) != len(turn):
            raise ValueError("two replicas have the same number")
        for s in turn:
            if s.start_ns > s.end_ns:
                raise ValueError(f"replica {s.replica} ends before it starts")
            if s.counts and len(s.counts) != len(s.durations_ns):
                raise ValueError(f"replica {s.replica}: not a count for each sample")
    parity = found.parity
    if parity and parity.labelled < max(
        parity.correct, parity.correct5, parity.reference_correct, parity.reference_correct5
    ):
        raise ValueError("parity: more right answers than labels")
    if parity and parity.disagreeing < len(parity.disagreements):
        raise ValueError("parity: more disagreements than were counted")
    if parity and parity.answers and len(parity.answers.given) != len(parity.answers.labels):
        raise ValueError("parity: not a label for each answer")
    if found.pipeline and found.pipeline.labelled < max(
        found.pipeline.correct, found.pipeline.correct5
    ):
        raise ValueError("pipeline: more right answers than labels")
    for name in ("facts", "telemetry"):
        _plain(name, getattr(found, name))
    _plain("options", found.cell.options)
    if found.telemetry:
        _shaped("telemetry", found.telemetry, _Telemetry)


def storable(found: Record) -> Record:
    """``found`` without what would make it unreadable in its facts and its telemetry."""
    telemetry, lost = _apart(found.telemetry, _Telemetry)
    return replace(found, facts=facts(found.facts | lost), telemetry=telemetry)


def facts(found: Mapping[str, Any]) -> dict[str, Any]:
    """``found`` as it can be stored and read: in place of a fact that cannot, why."""
    kept, lost = _apart(found)
    return kept | lost


def _apart(
    found: Mapping[str, Any], shape: type[Struct] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """(what can be stored, why the rest cannot)"""
    kept: dict[str, Any] = {}
    lost: dict[str, str] = {}
    for key, value in found.items():
        try:
            # a library's own type of a version: its text will do
            one = msgspec.json.decode(msgspec.json.encode({key: value}, enc_hook=str))
            _plain("facts", one)
            if shape:
                _shaped("telemetry", one, shape)
            kept |= one
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            lost[escape.visible(str(key))] = f"left out: {escape.visible(str(error))}"
    return kept, lost


def _plain(name: str, value: Any, depth: int = 0) -> None:
    """Refuse numbers that would overflow and nesting that would exhaust the stack."""
    if depth == DEEPEST:
        raise ValueError(f"{name}: nested more than {DEEPEST} deep")
    for inner in value.values() if type(value) is dict else value:
        kind = type(inner)
        if kind is dict or kind is list or kind is tuple:
            _plain(name, inner, depth + 1)
        elif kind is int and not -LARGEST <= inner < LARGEST:
            raise ValueError(f"{name}: a number of more than 64 bits")


def _shaped(name: str, value: Any, shape: type[Struct]) -> None:
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from error
