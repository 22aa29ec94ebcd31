"""From the command line's words to a plan and a job."""

from __future__ import annotations

import re
import secrets
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from gpubench import environment, suitefile
from gpubench.backends import base
from gpubench.cores import usable_cores
from gpubench.decoders import base as decoders
from gpubench.errors import InputError, SuiteError
from gpubench.gpu import visible_gpus
from gpubench.record import Header, Pairing
from gpubench.run import ab, arms, needs, pool
from gpubench.run import plan as planning
from gpubench.run.cluster import Cluster
from gpubench.run.crew import ARMS
from gpubench.run.driver import Job
from gpubench.run.results import now
from gpubench.suite import Catalog, Cell, Rule, Suite
from gpubench.workload import models
from gpubench.workload.cache import Cache


class Session(Struct, frozen=True):
    """All that a command needs to run a suite or to show its plan."""

    plan: planning.Plan
    job: Job
    backends: dict[str, base.Backend]


def catalog() -> Catalog:
    """What a suite may name on this installation; imports no runtime."""
    backends = {}
    for name in base.names():
        try:
            backends[name] = tuple(base.get(name).options)
        except InputError:
            backends[name] = ()  # a broken plug-in; whoever names it is told
    return Catalog(backends=backends, models=models.names(), decoders=tuple(decoders.names()))


def comparison(
    suite_name: str,
    chosen: Mapping[str, Any],
    specs: tuple[arms.Spec, arms.Spec],
    pythons: tuple[Path | None, Path | None],
    rule: Rule,
    budget_s: float,
    cache_dir: Path | None,
    output: Path | None,
    resume: bool,
    required: Sequence[str],
    reference: tuple[str, str] | None = None,
) -> ab.Job:
    """Both arms of an interleaved A/B: (baseline, candidate) in ``specs`` and ``pythons``.

    ``reference``: the baseline's interpreter was made from (name, commit).
    """
    cores, gpus = usable_cores(), len(visible_gpus())
    wanted = chosen.get("cell") or ()
    chosen = {key: value for key, value in chosen.items() if key != "cell" and value is not None}
    draft = suitefile.read(suite_name, catalog())
    suites = [arms.suite_of(spec, draft, chosen) for spec in specs]
    grids = [suitefile.expand(s, device_of(s, gpus), len(cores)) for s in suites]
    matched = arms.match(*specs, *grids)
    kept = {cell.key for pair in matched for cell in pair}
    for key in wanted:
        if key not in kept:
            raise SuiteError(f"--cell {key!r}: neither arm has such a cell here")
    matched = [pair for pair in matched if not wanted or {c.key for c in pair} & {*wanted}]
    backends = {n: base.get(n) for n in sorted({c.backend for pair in matched for c in pair})}
    _check_required(required, sorted(backends))
    token = uuid.uuid4().hex[:12]
    sides = []
    for place, arm in enumerate(ARMS):
        cells = [pair[place] for pair in matched]
        plan = planning.make(suites[place], cells, backends, cores, gpus)
        words, commit = [specs[place].words], ""
        if arm == "baseline" and reference:
            words, commit = [*words, f"ref={reference[0]} ({reference[1][:12]})"], reference[1]
        elif pythons[place]:
            words.append(f"python={pythons[place]}")
        pairing = Pairing(
            session=token, arm=arm, differs=",".join(filter(None, words)) or "nothing", rule=rule
        )
        header = msgspec.structs.replace(new_header(plan), pairing=pairing, planned=cells)
        sides.append(ab.Side(arm, plan, header, pythons[place], commit=commit))
    if resume and output is None:
        raise SuiteError("--resume: say which A/B to go on with: -o DIR")
    return ab.Job(
        sides=(sides[0], sides[1]),
        backends=backends,
        rule=rule,
        budget_s=budget_s,
        out=output or directory(f"ab-{suites[0].name}"),
        cache_dir=Cache(cache_dir).root,
        seed=secrets.randbits(32),  # afresh: a fixed one would repeat an unlucky order for ever
        left_out=tuple(c.label for grid in grids for c in grid if c.key not in kept),
        resume=resume,
        required=tuple(required),
    )


def device_of(suite: Suite, gpus: int) -> Literal["cpu", "cuda"]:
    """The one that its cells are for here."""
    wanted = suite.axes.device
    return wanted if wanted != "auto" else ("cuda" if gpus else "cpu")


def _check_required(required: Sequence[str], named: Sequence[str]) -> None:
    for name in required:
        if name not in named:
            raise SuiteError(f"--require {name!r}: the run has no cell of it; it has {named}")


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


def directory(name: str) -> Path:
    """reports/NAME-<moment>, with a name that any file system takes."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return Path("reports") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{moment}"


def load(suite_name: str, chosen: Mapping[str, Any]) -> Suite:
    """The suite with what the command line says instead."""
    overrides = {key: value for key, value in chosen.items() if key != "cell" and value is not None}
    return suitefile.load(suite_name, catalog(), overrides)


def backends_of(suite: Suite) -> dict[str, base.Backend]:
    """Those that it names."""
    return {name: base.get(name) for name in sorted(suite.axes.backend)}


def _spread(suite: Suite, nodes: Sequence[pool.Node]) -> list[Cell]:
    """The cells for several machines; without ``axes.cores``, their cores are shared out."""
    device = device_of(suite, sum(node.gpus for node in nodes))
    axes = suite.axes
    most = max(-(-n // each) for n in axes.replicas for each in axes.replicas_per_device)
    cores = axes.cores or pool.cores_of_a_device(most, nodes)
    shared = msgspec.structs.replace(suite, axes=msgspec.structs.replace(axes, cores=cores))
    return suitefile.expand(shared, device, cores)


def session(
    suite_name: str,
    chosen: Mapping[str, Any],
    cache_dir: Path | None,
    output: Path | None,
    resume: bool,
    required: Sequence[str],
    cluster: Cluster | None = None,
) -> Session:
    """Read the suite, resolve its device, and sort its cells into runnable and skipped.

    ``cluster``: the other nodes, which are waited for here.
    """
    suite = load(suite_name, chosen)
    cores = usable_cores()
    gpus = len(visible_gpus())
    if cluster:
        cluster.gather(
            pool.digest(suite),
            pool.here(0, backends_of(suite), needs.decoders_of(suite)),
            environment.collect(command()),
        )
        cells = _spread(suite, cluster.nodes)
    else:
        cells = suitefile.expand(suite, device_of(suite, gpus), len(cores))
    named = sorted({cell.backend for cell in cells})
    _check_required(required, named)
    for key in chosen.get("cell") or ():
        if key not in {cell.key for cell in cells}:
            raise SuiteError(
                f"--cell {key!r}: suite {suite.name} has no such cell here; "
                f"'gpubench plan {suite_name}' lists the keys"
            )
    if chosen.get("cell"):
        cells = [cell for cell in cells if cell.key in chosen["cell"]]
    backends = {name: base.get(name) for name in named}
    plan = planning.make(suite, cells, backends, cores, gpus, cluster.nodes if cluster else ())
    if resume and output is None:
        raise SuiteError("--resume: say which run to go on with: -o DIR")
    job = Job(
        header=new_header(plan, cluster.environments if cluster else ()),
        out=output or directory(suite.name),
        cache_dir=Cache(cache_dir).root,
        resume=resume,
        required=tuple(required),
    )
    return Session(plan, job, backends)
