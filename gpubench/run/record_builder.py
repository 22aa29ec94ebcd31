"""What agents answer, as records."""

from __future__ import annotations

import itertools
import re
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from gpubench.analysis import floors
from gpubench.errors import InputError, RecordError
from gpubench.machine import environment
from gpubench.records.parity import Parity, PipelineCheck
from gpubench.records.record import FAILURES, Header, Record
from gpubench.records.samples import window_ns
from gpubench.run import plan as planning
from gpubench.run.agent.messages import Done, Failure, Reply
from gpubench.run.plan import Skip
from gpubench.suite.types import Cell


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def skipped(skip: Skip, required: Sequence[str]) -> Record:
    """A skip's record: a failure where ``required`` names its backend."""
    must = skip.cell.backend in required
    return Record(
        cell=skip.cell,
        repeat=0,
        status="failed" if must else skip.status,
        kind="required" if must else "",
        reason=f"--require {skip.cell.backend}: {skip.reason}" if must else skip.reason,
        remedy=skip.remedy,
        started=now(),
    )


def failed(cell: Cell, repeat: int, reply: Reply, required: Sequence[str]) -> Record:
    """The record of a task that gave no measurement."""
    if not isinstance(reply, Failure):
        reply = Failure("error", f"unexpected answer: {type(reply).__name__}")
    if reply.kind in ("unavailable", "unsupported"):
        skip = Skip(cell, reply.kind, reply.reason, reply.remedy)  # type: ignore[arg-type]
        return replace(skipped(skip, required), repeat=repeat)
    return Record(
        cell=cell,
        repeat=repeat,
        status="failed",
        kind=reply.kind if reply.kind in FAILURES else "error",
        reason=reply.reason,
        remedy=reply.remedy,
        started=now(),
    )


def measured(cell: Cell, repeat: int, done: Done, prepare_ns: dict[str, int]) -> Record:
    """The record of a measured task; wrong answers are a failure that keeps its timing."""
    record, parity = done.record, done.record.parity
    seen = list(record.flags)
    if any(window_ns(visit) is None for visit in record.visits):
        seen.append("NO-COMMON-WINDOW")
    if parity is None:
        seen.append("NO-PARITY")
    if cell.images == "synthetic" or cell.weights == "random":
        seen.append("SPEED-ONLY")
    record = replace(record, cell=cell, repeat=repeat, prepare_ns=prepare_ns,
                     flags=list(dict.fromkeys(seen)))  # fmt: skip
    if parity is not None and not parity.passed:
        return replace(
            record, status="failed", kind="parity", reason=_words(parity), remedy=_remedy(cell)
        )
    if record.pipeline is not None and not record.pipeline.passed:
        return replace(
            record, status="failed", kind="parity", reason=_pipeline_words(record.pipeline)
        )
    if parity is not None and not parity.accurate:
        return replace(record, status="failed", kind="accuracy", reason=_floors(parity))
    return record


def _remedy(cell: Cell) -> str:
    if cell.weights == "probe" and cell.precision in ("fp16", "bf16"):
        return (
            f"probe weights may lose more in {cell.precision} than trained ones; give your own "
            "(workload.weights), or try precision amp"
        )
    if cell.precision != "int8":
        return ""
    if cell.weights == "probe":
        return (
            "probe weights say little of int8: of networks with attention they lose more than "
            "trained ones; give your own (workload.weights)"
        )
    return (
        "try pictures like those it was trained on (workload.calibration), more of them "
        "(calibration_images), another calibration, or fp16, bf16"
    )


def _words(parity: Parity) -> str:
    if parity.relative_error is None:
        error = "answers that are not finite (NaN or infinite), unlike the reference's"
    else:
        error = f"relative error {parity.relative_error:.3g}"
    return (
        f"{error} (allowed {parity.max_relative_error:g}), "
        f"top-1 agreement {parity.top1_agreement:.3f} (needed {parity.min_top1_agreement:g}), "
        f"worst at batch slot {parity.worst_slot}"
    )


def _pipeline_words(path: PipelineCheck) -> str:
    return (
        f"decoder {path.decoder}: from the same encoded pictures, top-1 agreement with the "
        f"reference {path.top1_agreement:.3f} (policy.min_pipeline_agreement = "
        f"{path.min_top1_agreement:g}); inputs differ by up to {path.max_difference:.3g} steps of "
        f"8-bit pixels, {path.mean_difference:.3g} on average"
    )


def _floors(p: Parity) -> str:
    """'top-1 accuracy 0.912 (73 of 80) is below min_accuracy 0.95'; what that is worth."""
    share, theirs = p.correct / p.labelled, p.reference_correct / p.labelled
    drop = 100 * (theirs - share)
    found = f"top-1 accuracy {share:.3f} ({p.correct} of {p.labelled})"
    reasons = []
    if p.min_accuracy is not None and share < p.min_accuracy:
        floor = floors.of(p)
        unsure = f" ({floor.text})" if floor and floor.state == "undecided" else ""
        reasons.append(f"is below min_accuracy {p.min_accuracy:g}{unsure}")
    if p.max_accuracy_drop is not None and drop > p.max_accuracy_drop:
        reasons.append(
            f"is {drop:.2f} points below the reference's {theirs:.3f} on the same images "
            f"(max_accuracy_drop {p.max_accuracy_drop:g})"
        )
    return f"{found} {' and '.join(reasons)}"


def command() -> list[str]:
    """As it was typed."""
    return ["gpubench", *sys.argv[1:]]


def new_header(plan: planning.Plan, nodes: Sequence[environment.Environment] = ()) -> Header:
    """Of a run of ``plan``. ``nodes``: environments by rank, where several machines measure."""
    found = nodes or [environment.collect(command())]
    return Header(
        run_id=uuid.uuid4().hex[:12],
        suite=plan.suite,
        environment=found[0],
        fingerprint=environment.fingerprint_of(found),
        nodes=list(nodes),
        node_differences=environment.node_differences(found),
        command=command(),
        started=now(),
        planned=plan.planned,
        seed=plan.suite.policy.seed,
    )


def check_machine(place: str | Path, old: Header, new: Header) -> None:
    """Raises RecordError where a run that is gone on with was measured under other conditions."""
    if old.fingerprint != new.fingerprint:
        found = environment.changes(old.environment, new.environment)
        told = "; ".join(f"{key}: {both}" for key, both in found.items()) or "its other nodes"
        raise RecordError(
            f"{place}: was measured on another machine or with other library versions ({told}); "
            "start a new one"
        )


def directory(name: str) -> Path:
    """reports/NAME-<moment>, with a name that any file system takes."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return Path("reports") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{moment}"


def claimed(place: Path) -> Path:
    """``place``, made for one run; place-2 and so on where others began in the same second.

    Git leaves out a folder of runs that begins here: a repository stays as clean as it was.
    """
    names = (place.with_name(f"{place.name}-{n}") for n in itertools.count(2))
    try:
        if not place.parent.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            (place.parent / ".gitignore").write_text(
                "# runs of gpubench; to commit them, delete this\n*\n"
            )
        for found in itertools.chain([place], names):
            with suppress(FileExistsError):
                found.mkdir(parents=True)
                break
    except OSError as error:
        raise InputError(
            f"{place.parent}: no directory for a run: {error.strerror}; give one that can be "
            "written: -o DIR, in Python output=DIR"
        ) from error
    return found
