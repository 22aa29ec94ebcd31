"""What a node does of what rank 0 asks: cells of its own suite, with its own paths."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from gpubench import suitefile
from gpubench.backends.base import Backend
from gpubench.cores import usable_cores
from gpubench.run import needs, pool
from gpubench.run.client import Asked, OnProgress
from gpubench.run.messages import (
    Begin,
    BuildReference,
    End,
    Failure,
    Measure,
    Prepare,
    Prepared,
    Reply,
    Request,
    Step,
)
from gpubench.run.nodes import TEAM
from gpubench.run.plan import Plan
from gpubench.run.prepare import family, not_importable
from gpubench.run.wire import Tell
from gpubench.suite import Cell, Suite


class Refused(Exception):
    """A request that this node will not do."""


class Desk:
    """Does requests as this node understands them: nothing but names and numbers come from outside.

    A cell must be one of the node's own suite; artefacts, references, cores, modules, time-outs and
    numbers of turns are its own as well.
    """

    def __init__(
        self, rank: int, suite: Suite, backends: Mapping[str, Backend], agent: Asked, say: Tell
    ) -> None:
        self._rank, self._suite, self._backends = rank, suite, backends
        self._agent, self._say = agent, say
        self._here = pool.here(rank, backends, needs.decoders_of(suite))
        self._cores = usable_cores()
        self._cells: dict[tuple[str, int], dict[str, Cell]] = {}
        self._broken: dict[str, str] = {}
        self._reference = ""
        self._artefacts: dict[str, str] = {}

    def start(self) -> None:
        """Start the agent and its imports."""
        self._broken = self._agent.start().errors

    def answer(self, request: Request, progress: OnProgress) -> Reply:
        """What became of it; what is refused is a Failure."""
        try:
            own = self._own(request)
        except Refused as why:
            return Failure("error", f"refused: {why}")
        if isinstance(own, Failure):
            return own
        reply = self._agent.ask(own, progress)
        if isinstance(reply, Prepared):
            if isinstance(own, Prepare):
                self._artefacts[family(own.cell)] = reply.path
            else:
                self._reference = reply.path
            return Prepared("", reply.ns)
        return reply

    def _own(self, request: Request) -> Request | Failure:
        policy = self._suite.policy
        if isinstance(request, BuildReference):
            self._say("images and reference answers")
            return BuildReference(self._suite.workload, policy)
        if isinstance(request, Prepare):
            cell = self._cell(request.cell)
            self._say(f"preparing {cell.label}")
            return self._lack(cell) or Prepare(
                cell, self._places(cell)[0], policy.prepare_timeout_s
            )
        if isinstance(request, Begin):
            return self._begin(request.measure)
        if isinstance(request, Step):
            return Step(TEAM, [], min(request.timeout_s, policy.timeout_s))
        if isinstance(request, End):
            return End(TEAM)
        raise Refused(f"a {type(request).__name__} is nothing that a node does")

    def _begin(self, asked: Measure) -> Begin | Failure:
        cell = self._cell(asked.cell)
        count, here = len(asked.cores), self._here.devices(cell) * cell.replicas_per_device
        if not 0 < count <= min(here, cell.replicas - asked.first) or asked.first < 0:
            raise Refused(
                f"replicas {asked.first} to {asked.first + count - 1} of {cell.label}; this node "
                f"has room for {here}"
            )
        artefact = self._artefacts.get(family(cell))
        if artefact is None or not self._reference:
            raise Refused(f"{cell.label} was not prepared here")
        self._say(f"measuring {cell.label}: {count} of {cell.replicas} replicas")
        return Begin(
            TEAM,
            Measure(
                cell, self._suite.policy, artefact, self._reference, self._places(cell)[:count],
                node=self._rank, first=asked.first, repeat=asked.repeat,
            ),
        )  # fmt: skip

    def _cell(self, asked: Cell) -> Cell:
        """The same cell of this node's own suite. Only its ``cores`` may depend on the others."""
        where = (asked.device, asked.cores)
        if where not in self._cells:
            axes = self._suite.axes
            if axes.device not in ("auto", asked.device):
                raise Refused(f"device {asked.device}; this node's suite has {axes.device}")
            if asked.cores < 0 or (
                axes.cores and asked.device == "cpu" and asked.cores != axes.cores
            ):
                raise Refused(f"{asked.cores} cores a device; this node's suite has {axes.cores}")
            suite = replace(self._suite, axes=replace(axes, cores=max(1, asked.cores)))
            found = suitefile.expand(suite, asked.device, len(self._cores))
            self._cells[where] = {cell.key: cell for cell in found}
        cell = self._cells[where].get(asked.key)
        if cell is None:
            raise Refused(f"{asked.label} is no cell of this node's suite")
        return cell

    def _lack(self, cell: Cell) -> Failure | None:
        """Why its backend, or its decoder, cannot run here."""
        decoders = [cell.decoder] if cell.boundary == "pipeline" else []
        for lack in pool.lacks({cell.backend: self._backends[cell.backend]}, decoders).values():
            return Failure("unavailable", lack.reason, lack.remedy)
        return not_importable(cell, self._backends, self._broken)

    def _places(self, cell: Cell) -> list[tuple[int, ...]]:
        return Plan(self._suite, [cell], [], self._cores).cores_of(cell)
