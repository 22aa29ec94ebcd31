"""What comes before measuring: references and artefacts, each made once and cached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from gpubench.backends.base import Backend
from gpubench.errors import InputError
from gpubench.run import availability
from gpubench.run.agent import messages
from gpubench.run.agent.client import Asked
from gpubench.run.availability import family
from gpubench.run.plan import Plan
from gpubench.run.watcher import Watcher
from gpubench.suite.types import Cell


class Ready(Struct, frozen=True):
    """A cell with all that a worker needs."""

    cell: Cell
    reference: str
    artefact: str
    prepare_ns: dict[str, int]


class NotReady(Struct, frozen=True):
    """A cell that cannot be measured."""

    cell: Cell
    why: messages.Reply


def not_importable(
    cell: Cell, backends: Mapping[str, Backend], broken: Mapping[str, str]
) -> messages.Failure | None:
    """Which of the modules that the cell's workers import is ``broken``, and why."""
    for module in availability.preload([cell], backends):
        if module in broken:
            reason = f"{module} cannot be imported: {broken[module]}"
            remedy = f"reinstall it (gpubench doctor shows the state of {cell.backend})"
            return messages.Failure("unavailable", reason, remedy)
    return None


def prepare(
    agent: Asked,
    cells: Iterable[Cell],
    plan: Plan,
    backends: Mapping[str, Backend],
    broken: Mapping[str, str],
    watcher: Watcher,
) -> Iterator[Ready | NotReady]:
    """Reference and artefact of every cell, when it is asked for.

    ``broken``: modules that ``agent`` cannot import.

    Raises InputError for a model, weights or images that do not serve: no cell could be measured;
    and for images that int8 cannot be calibrated on.
    """
    policy = plan.suite.policy
    references: dict[object, messages.Reply] = {}
    artefacts: dict[object, messages.Reply] = {}
    for cell in cells:
        if lacking := not_importable(cell, backends, broken):
            yield NotReady(cell, lacking)
            continue
        workload = cell.workload
        key = replace(workload, calibration="")
        if key not in references:
            watcher.task(cell, "images and reference answers", 0)
            references[key] = reply = agent.ask(messages.BuildReference(workload, policy))
            if isinstance(reply, messages.Failure) and reply.kind == messages.BAD_INPUT:
                raise InputError(reply.reason)  # every cell needs it
        same = family(cell)
        if same not in artefacts and isinstance(references[key], messages.Prepared):
            watcher.task(cell, "export, build, compile", 0)
            cores = plan.cores_of(cell)[0]
            artefacts[same] = reply = agent.ask(
                messages.Prepare(cell, cores, policy.prepare_timeout_s)
            )
            if isinstance(reply, messages.Failure) and reply.kind == messages.BAD_CALIBRATION:
                raise InputError(reply.reason)
        reference, artefact = references[key], artefacts.get(same, references[key])
        if isinstance(reference, messages.Prepared) and isinstance(artefact, messages.Prepared):
            yield Ready(cell, reference.path, artefact.path, artefact.ns)
        else:
            yield NotReady(
                cell, artefact if isinstance(reference, messages.Prepared) else reference
            )
