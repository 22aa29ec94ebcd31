"""From a model's name to what it is, and which backends can take it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import Struct

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import GpubenchError, InputError
from gpubench.machine.gpu import visible_gpus
from gpubench.run import availability, setup
from gpubench.run.agent import messages
from gpubench.run.agent.client import AgentClient
from gpubench.suite.grid import combinations
from gpubench.suite.types import Precision
from gpubench.workload.models import registry
from gpubench.workload.models.inspection import Inspection


class Taker(Struct, frozen=True):
    """A backend, and what it makes of the network on ``device``."""

    backend: str
    precisions: list[str]
    why: str
    """Why there is none; '': there is."""


class Inspected(Struct, frozen=True):
    """A network, and who takes it."""

    model: str
    weights: str
    network: Inspection
    device: str
    backends: list[Taker]


def inspect(chosen: Mapping[str, Any], cache_dir: Path | None) -> Inspected:
    """``chosen``: as `Draft.suite`. Raises InputError for what is no classifier of pictures."""
    suite = setup.of_words(chosen)
    work = suite.workload
    registry.seen(work)
    with tempfile.TemporaryDirectory(prefix="gpubench-inspect-") as folder:
        modules = ["torch", *registry.of(work.model).preload]
        with AgentClient(modules, Cache(cache_dir).root, Path(folder, "agent.log")) as agent:
            agent.start()
            reply = agent.ask(messages.Inspect(work, suite.policy.prepare_timeout_s))
    if isinstance(reply, messages.Failure):
        words = "; ".join(filter(None, (reply.reason, reply.remedy)))
        if reply.kind == "crash":  # whatever it did, nothing else was in that process
            raise InputError(f"model {work.model!r} ends the process that tries it: {words}")
        raise (InputError if reply.kind == InputError.kind else GpubenchError)(words)
    assert isinstance(reply, messages.Inspected)  # noqa: S101 - for mypy
    device = availability.device_of(suite, len(visible_gpus()))
    cell = next(combinations(suite, device, 1))
    size = reply.network.batch or 1
    takers = []
    for name in base.names():
        backend = base.get(name)
        if not backend.computes:
            continue
        if lack := availability.lack(backend):
            takers.append(Taker(name, [], f"{lack.reason}; {lack.remedy}"))
            continue
        said: dict[str, str] = {}
        for precision in get_args(Precision):
            asked = msgspec.structs.replace(
                cell, backend=name, precision=precision, batch_size=size, options={}
            )
            reason = availability.unsupported(asked, backend)
            said[precision] = (
                reason.reason if isinstance(reason, availability.Lack) else (reason or "")
            )
        good = [precision for precision, reason in said.items() if not reason]
        takers.append(Taker(name, good, "" if good else said[reply.network.precision]))
    return Inspected(work.model, work.weights, reply.network, device, takers)
