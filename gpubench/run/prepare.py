"""What comes before measuring: references and artefacts, each made once and cached."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from gpubench.backends.base import Backend
from gpubench.errors import CalibrationError, ChangedError, InputError
from gpubench.machine.import_check import remedy_of
from gpubench.records.record import Record
from gpubench.run import availability
from gpubench.run.agent import messages
from gpubench.run.agent.client import Asked
from gpubench.run.availability import family
from gpubench.run.plan import Plan
from gpubench.run.watcher import Watcher
from gpubench.suite.types import Cell, Workload


class Ready(Struct, frozen=True):
    """A cell with all that a worker needs."""

    cell: Cell
    reference: str
    artefact: str
    prepare_ns: dict[str, int]
    contents: dict[str, str] = {}
    """Of the record."""


class NotReady(Struct, frozen=True):
    """A cell that cannot be measured."""

    cell: Cell
    why: messages.Reply


class Held:
    """What the workload's files and folders held when the run first met them, also before it was
    resumed: they must stay so, or two networks are averaged in one cell."""

    def __init__(self, earlier: Iterable[Record] = ()) -> None:
        """``earlier``: records of the sessions before."""
        self._digests: dict[tuple[str, ...], str] = {}
        self.late: dict[object, messages.Reply] = {}
        """Of workloads whose reference was not there in time: no arm waits for it once more."""
        for record in earlier:
            self.check(record.cell, record.contents)

    def check(self, cell: Cell, contents: Mapping[str, str]) -> None:
        """Raises ChangedError where a part of ``contents`` is not what it was."""
        for part, digest in contents.items():
            words = {
                "model": f"model {cell.model!r}, weights {cell.weights!r}",
                "preprocessing": f"preprocessing of model {cell.model!r} as {cell.input}",
                "images": f"images {cell.images!r}" + (cell.labels and f", labels {cell.labels!r}"),
                "calibration": f"calibration images {cell.calibration or cell.images!r}",
            }.get(part, part)  # another version may know more parts
            count = cell.options.get("calibration_images", "") if part == "calibration" else ""
            of = (words, str(count))
            if (before := self._digests.setdefault(of, digest)) != digest:
                raise ChangedError(
                    f"{words}: the contents have changed since the run began (SHA-256 "
                    f"{before[:12]} then, {digest[:12]} now); what is measured is kept. Put them "
                    "back and go on with --resume, or start a new run"
                )


def _asked(agent: Asked, request: messages.Request, *ends: str) -> messages.Reply:
    """The answer. Raises InputError for failures of the kinds ``ends``, which are every cell's."""
    reply = agent.ask(request)
    if isinstance(reply, messages.Failure):
        if reply.kind in ends:
            raise InputError(reply.reason)
        if reply.kind == "timeout" and not reply.remedy:
            words = "raise policy.prepare_timeout_s, and --budget where there is one"
            return replace(reply, reason=f"preparing: {reply.reason}", remedy=words)
    return reply


def question(of: Cell | messages.BuildReference) -> tuple[Workload, str]:
    """The same for cells that one reference serves."""
    return replace(of.workload, calibration=""), of.input


def not_importable(
    cell: Cell, backends: Mapping[str, Backend], broken: Mapping[str, str]
) -> messages.Failure | None:
    """Which of the modules that the cell's workers import is ``broken``, and why."""
    for module in availability.preload([cell], backends):
        if module in broken:
            reason = f"{module} cannot be imported: {broken[module]}"
            remedy = f"reinstall it (gpubench doctor shows the state of {cell.backend})"
            return messages.Failure("unavailable", reason, remedy_of(reason, remedy))
    return None


def prepare(
    agent: Asked,
    cells: Iterable[Cell],
    plan: Plan,
    backends: Mapping[str, Backend],
    broken: Mapping[str, str],
    watcher: Watcher,
    held: Held | None = None,
    limit_s: float = math.inf,
    made: messages.Prepared | None = None,
) -> Iterator[Ready | NotReady]:
    """Reference and artefact of every cell, when it is asked for.

    ``broken``: modules that ``agent`` cannot import. ``limit_s``: of one step, where the policy has
    more. ``made``: the artefact, where there is one already.

    Raises InputError for a model, weights or images that do not serve: no cell could be measured;
    for images that int8 cannot be calibrated on; and for what is no longer as it was ``held``.
    """
    policy, held = plan.suite.policy, held or Held()
    limit_s = min(limit_s, policy.prepare_timeout_s)
    brief = replace(policy, prepare_timeout_s=limit_s)
    references: dict[object, messages.Reply] = {}
    artefacts: dict[object, messages.Reply] = {}
    for cell in cells:
        if lacking := not_importable(cell, backends, broken):
            yield NotReady(cell, lacking)
            continue
        key = question(cell)
        if key not in references:
            watcher.task(cell, "images and reference answers", 0)
            request = messages.BuildReference(cell.workload, brief, cell.input)
            reply = held.late.get(key) or _asked(agent, request, InputError.kind, ChangedError.kind)
            if isinstance(reply, messages.Failure) and reply.kind == "timeout":
                held.late[key] = reply
            references[key] = reply
        same = family(cell)
        if made:
            artefacts[same] = made
        if same not in artefacts and isinstance(references[key], messages.Prepared):
            watcher.task(cell, "export, build, compile", 0)
            cores = plan.cores_of(cell)[0]
            build = messages.Prepare(cell, cores, limit_s)
            artefacts[same] = _asked(agent, build, CalibrationError.kind, ChangedError.kind)
        reference, artefact = references[key], artefacts.get(same, references[key])
        if isinstance(reference, messages.Prepared) and isinstance(artefact, messages.Prepared):
            contents = reference.contents | artefact.contents
            held.check(cell, reference.contents)
            held.check(cell, artefact.contents)
            yield Ready(cell, reference.path, artefact.path, artefact.ns, contents)
        else:
            yield NotReady(
                cell, artefact if isinstance(reference, messages.Prepared) else reference
            )
