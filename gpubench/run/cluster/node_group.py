"""Several nodes as one agent: each has its thread here, and a cell's turns are taken together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from time import monotonic, perf_counter_ns
from typing import Any, Self

from msgspec.structs import replace

from gpubench.errors import ChangedError, GpubenchError
from gpubench.records.record import merged
from gpubench.run.agent import messages
from gpubench.run.agent.client import OnProgress
from gpubench.run.availability import family
from gpubench.run.cluster.ray_cluster import LOST, Cluster, each
from gpubench.run.inventory import shares
from gpubench.run.plan import Plan
from gpubench.run.prepare import question
from gpubench.suite.types import Cell

TEAM = "cell"


class Nodes:
    """All nodes as one agent: `gpubench.run.driver` asks it as it asks one."""

    def __init__(self, cluster: Cluster, plan: Plan, modules: list[str], cache_dir: str) -> None:
        """``modules``: what workers import; ``cache_dir``: '', each machine's own."""
        self._cluster, self._plan = cluster, plan
        self._words = modules, cache_dir
        needed = sorted({rank for c in plan.cells for rank in shares(c, plan.nodes)})
        self._peers = {rank: cluster.peers[rank] for rank in needed}
        self._seats = {rank: ThreadPoolExecutor(1, f"node {rank}") for rank in needed}
        """A node does its requests one by one."""
        self._failed: dict[tuple[int, object], messages.Failure] = {}
        """(rank, family of cells, or their `question`, or '' for all): what a node could not do."""

    def start(self) -> messages.Preloaded:
        """Start the agents that are needed. What one cannot import is its own cells' affair."""
        begin = monotonic()
        replies = self._all(
            dict.fromkeys(self._peers, messages.Preload(*self._words)), to_the_end=True
        )
        for rank, reply in replies.items():
            if isinstance(reply, messages.Failure):
                if len(replies) == 1:
                    raise GpubenchError(reply.reason)
                self._failed[rank, ""] = reply
        return messages.Preloaded({}, monotonic() - begin)

    def stop(self) -> None:
        each(lambda peer: peer.stop(), self._peers.values())
        for seat in self._seats.values():
            seat.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, request: messages.Request, progress: OnProgress | None = None) -> messages.Reply:
        """Measure on the nodes that the cell needs; prepare on all that any cell needs."""
        if isinstance(request, messages.Measure):
            return self._measure(request, progress)
        once = isinstance(request, messages.Count | messages.Gauge)
        if once and len(self._peers) > 1:
            return messages.Failure("error", "of several machines no roofline is measured")
        what: object = ""
        if isinstance(request, messages.Prepare):
            what = family(request.cell)
        elif isinstance(request, messages.BuildReference):
            what = question(request)
        replies = self._all(dict.fromkeys(self._peers, request), to_the_end=True)
        for rank, reply in replies.items():
            if isinstance(reply, messages.Failure) and not once:
                self._failed[rank, what] = reply
        first = min(replies, key=lambda n: (getattr(replies[n], "kind", "") == LOST, n))
        for rank, reply in replies.items():
            if differ := _differ(replies[first], reply):
                words = f"node {rank} and node {first} hold different contents of it"
                return messages.Failure(ChangedError.kind, f"{', '.join(differ)}: {words}")
        return replies[first]

    def _measure(self, request: messages.Measure, progress: OnProgress | None) -> messages.Reply:
        cell = request.cell
        share = shares(cell, self._plan.nodes)
        for rank in share:
            for what in ("", question(cell), family(cell)):
                if (rank, what) in self._failed:
                    return self._failed[rank, what]
        if len(share) == 1:
            (rank,) = share
            request = replace(request, node=rank)
            return self._all({rank: request}, lambda _, step: progress and progress(step))[rank]
        replies, bound_ns = self._together(request, share, progress)
        done = {rank: reply for rank, reply in replies.items() if isinstance(reply, messages.Done)}
        if len(done) == len(share):
            return self._merged(cell, done, bound_ns)
        for rank in share:  # heard when what they do now has ended
            self._submit(rank, messages.End(TEAM))
        strange = messages.Failure("error", f"the nodes answered {replies}")
        return next((r for r in replies.values() if isinstance(r, messages.Failure)), strange)

    def _together(
        self, request: messages.Measure, share: Mapping[int, int], progress: OnProgress | None
    ) -> tuple[dict[int, messages.Reply], int]:
        """From barrier to barrier, all nodes at once; and the bound of the last one's skew, ns.

        Every node releases its workers between the moment at which the first was told and the
        moment at which the last had said that it did, both by rank 0's clock.
        """
        end = monotonic() + request.policy.timeout_s
        first, begins = 0, {}
        for rank, count in share.items():
            part = replace(request, cores=[()] * count, node=rank, first=first)
            begins[rank] = messages.Begin(TEAM, part)
            first += count
        replies, released, told = self._all(begins), [0], 0
        while len(replies) == len(share) and all(
            isinstance(r, messages.Waiting) for r in replies.values()
        ):
            reached = next(iter(replies.values()))
            if progress is not None and isinstance(reached, messages.Waiting):
                progress(messages.Progress(reached.barrier))
            step = messages.Step(TEAM, [], max(0.1, end - monotonic()))
            released, told = [], perf_counter_ns()
            note = lambda *_, to=released: to.append(perf_counter_ns())  # noqa: E731
            replies = self._all(dict.fromkeys(share, step), note)
        return replies, max(released, default=told) - told

    def _all(
        self,
        requests: Mapping[int, messages.Request],
        progress: Callable[[int, messages.Progress], Any] | None = None,
        to_the_end: bool = False,
    ) -> dict[int, messages.Reply]:
        """Every node's answer; only those that came until one failed, unless ``to_the_end``.

        A node that is lost has failed: whoever waits for it is told so.
        """
        futures = {
            self._submit(rank, request, partial(progress, rank) if progress else None): rank
            for rank, request in requests.items()
        }
        replies: dict[int, messages.Reply] = {}
        for future in as_completed(futures):
            reply = replies[futures[future]] = future.result()
            if isinstance(reply, messages.Failure) and not to_the_end:
                break
        return replies

    def _submit(
        self, rank: int, request: messages.Request, tell: OnProgress | None = None
    ) -> Future[messages.Reply]:
        return self._seats[rank].submit(self._peers[rank].ask, request, tell)

    def _merged(
        self, cell: Cell, done: Mapping[int, messages.Done], bound_ns: int
    ) -> messages.Reply:
        """One answer. Offsets count from each node's own start: no clocks are compared."""
        ranks = sorted(done)
        records = [done[rank].record for rank in ranks]
        numbers = [samples.replica for record in records for samples in record.replicas]
        if numbers != list(range(cell.replicas)):
            return messages.Failure("error", f"the nodes answered for replicas {numbers}")
        whole = merged(records)
        whole = replace(
            whole,
            telemetry=_telemetry({rank: done[rank].record.telemetry for rank in ranks}, bound_ns),
            flags=whole.flags + ["NODES-DIFFER"] * self._cluster.differ(ranks),
        )
        return messages.Done(whole, any(done[rank].invalid for rank in ranks))


def _differ(one: messages.Reply, other: messages.Reply) -> list[str]:
    """Which parts of the workload are not the same."""
    if not isinstance(one, messages.Prepared) or not isinstance(other, messages.Prepared):
        return []
    mine, theirs = one.contents, other.contents
    return [part for part in mine if mine[part] != theirs.get(part, mine[part])]


def _telemetry(by_node: Mapping[int, dict[str, Any]], bound_ns: int) -> dict[str, Any]:
    """The first node's, the GPUs of all, and what each one's CPU went through."""
    found = dict(next(iter(by_node.values())))
    gpus = [gpu | {"node": n} for n, seen in by_node.items() for gpu in seen.get("gpus", [])]
    found |= {"gpus": gpus} if gpus else {}
    found["nodes"] = {
        str(rank): {key: value for key, value in seen.items() if key != "gpus"}
        for rank, seen in by_node.items()
    }
    found["barrier_ns"] = bound_ns
    energies = [seen["energy"] for seen in by_node.values() if "energy" in seen]
    found.pop("energy", None)
    if len(energies) == len(by_node) and len({e["source"] for e in energies}) == 1:
        # What they drew together, for as long as the first was looked at.
        idle, first = [e["idle_watts"] for e in energies], energies[0]
        found["energy"] = first | {
            "joules": first["seconds"] * sum(e["joules"] / e["seconds"] for e in energies),
            "idle_watts": None if None in idle else sum(idle),
        }
    return found
