"""From a model's name to what it is, and which backends can take it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import Struct
from rich.text import Text

from gpubench import units
from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import GpubenchError, InputError
from gpubench.machine.gpu import visible_gpus
from gpubench.run import availability, setup
from gpubench.run.agent import messages
from gpubench.run.agent.client import AgentClient
from gpubench.run.results import Shown
from gpubench.suite.grid import combinations
from gpubench.suite.types import Precision, Suite, told
from gpubench.workload.models import registry
from gpubench.workload.models.inspection import Inspection

_MOST = 12
"""Modules that are shown; as JSON all are."""


class Taker(Struct, frozen=True):
    """A backend, and what it makes of the network on ``device``."""

    backend: str
    precisions: list[str]
    why: str
    """Why there is none; '': there is."""


class Inspected(Shown, Struct, frozen=True):
    """A network, and who takes it."""

    model: str
    weights: str
    network: Inspection
    """Its input, classes, parameters, FLOPs, and so on."""
    device: str
    backends: list[Taker]
    """``backend``, and the ``precisions`` in which it takes the network, or ``why`` in none."""

    def __repr__(self) -> str:
        """As the command line prints it; a remedy is not broken."""
        return "\n".join(part.plain for part in self._parts())

    def _parts(self) -> Sequence[Text]:
        net = self.network
        names = f" ({', '.join(net.class_names[:3])}, ...)" if net.class_names else ""
        batch = f"{net.batch} only" if net.batch else "any"
        rows = [
            ("model", f"{told(self.model)} ({self.weights}): {net.kind}"),
            (
                "input",
                f"{' x '.join(map(str, net.input_shape))} {net.input_dtype}, batch size {batch}",
            ),
            ("pictures", net.preprocessing),
            ("output", f"{net.classes:,} {net.answers}{names}"),
            ("parameters", f"{net.parameters:,} ({net.precision})"),
            (
                "FLOPs",
                f"{net.flops:,.0f} for a picture"
                if net.flops is not None
                else f"not counted: {net.uncounted}",
            ),
            *([("opset", str(net.opset))] if net.opset else []),
            *(("note", note) for note in net.notes),
            ("SHA-256", net.sha256),
        ]
        lines = [f"{name:<11} {value}" for name, value in rows]
        if net.modules and net.flops:
            most = sorted(net.modules.items(), key=lambda one: -one[1])[:_MOST]
            lines += ["", "FLOPs by module"]
            lines += [f"{share / net.flops:>7.1%}  {name}" for name, share in most]
            left = len(net.modules) - len(most)
            lines += [f"         and {units.count(left, 'more module')}"] if left else []
        lines += ["", f"backends on {self.device}"]
        width = max(len(one.backend) for one in self.backends)
        lines += [
            f"{one.backend:<{width}}  {', '.join(one.precisions) or f'no: {one.why}'}"
            for one in self.backends
        ]
        return [Text(line) for line in lines]


def network(suite: Suite, cache_dir: Path | None) -> Inspection:
    """What a process of its own finds out.

    Raises InputError for what is no classifier of pictures.
    """
    work = suite.workload
    registry.seen(work)
    with tempfile.TemporaryDirectory(prefix="gpubench-inspect-") as folder:
        source = registry.of(work.model)
        modules = [*(["torch"] if source.onnx_with else []), *source.preload]
        with AgentClient(modules, Cache(cache_dir).root, Path(folder, "agent.log")) as agent:
            agent.start()
            reply = agent.ask(messages.Inspect(work, suite.policy.prepare_timeout_s))
    if isinstance(reply, messages.Failure):
        words = "; ".join(filter(None, (reply.reason, reply.remedy)))
        if reply.kind == "crash":  # whatever it did, nothing else was in that process
            raise InputError(told(f"model {work.model!r} ends the process that tries it: {words}"))
        raise (InputError if reply.kind == InputError.kind else GpubenchError)(words)
    assert isinstance(reply, messages.Inspected)  # noqa: S101 - for mypy
    return reply.network


def inspect(chosen: Mapping[str, Any], cache_dir: Path | None) -> Inspected:
    """``chosen``: as `Draft.suite`. Raises InputError for what is no classifier of pictures."""
    suite = setup.of_words(chosen)
    work, found = suite.workload, network(suite, cache_dir)
    device = availability.device_of(suite, len(visible_gpus()))
    cell = next(combinations(suite, device, 1))
    size = found.batch or 1
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
        takers.append(Taker(name, good, "" if good else said[found.precision]))
    return Inspected(work.model, work.weights, found, device, takers)
