"""From the command line's words to a plan and a job."""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from gpubench import environment, suitefile
from gpubench.backends import base
from gpubench.errors import InputError, SuiteError
from gpubench.gpu import visible_gpus
from gpubench.record import Header
from gpubench.run import plan as planning
from gpubench.run.driver import Job
from gpubench.run.results import now
from gpubench.suite import Catalog
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
    return Catalog(backends=backends, models=models.names())


def session(
    suite_name: str,
    chosen: Mapping[str, Any],
    cache_dir: Path | None,
    output: Path | None,
    resume: bool,
    required: Sequence[str],
) -> Session:
    """Read the suite, resolve its device, and sort its cells into runnable and skipped."""
    overrides = {key: value for key, value in chosen.items() if key != "cell" and value is not None}
    suite = suitefile.load(suite_name, catalog(), overrides)
    cores = environment.usable_cores()
    gpus = len(visible_gpus())
    wanted = suite.axes.device
    device = wanted if wanted != "auto" else ("cuda" if gpus else "cpu")
    cells = suitefile.expand(suite, device, len(cores))
    named = sorted({cell.backend for cell in cells})
    for name in required:
        if name not in named:
            raise SuiteError(f"--require {name!r}: the run has no cell of it; it has {named}")
    for key in chosen.get("cell") or ():
        if key not in {cell.key for cell in cells}:
            raise SuiteError(
                f"--cell {key!r}: suite {suite.name} has no such cell here; "
                f"'gpubench plan {suite_name}' lists the keys"
            )
    if chosen.get("cell"):
        cells = [cell for cell in cells if cell.key in chosen["cell"]]
    backends = {name: base.get(name) for name in named}
    plan = planning.make(suite, cells, backends, cores, gpus)
    command = ["gpubench", *sys.argv[1:]]
    here = environment.collect(command)
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", suite.name)
    header = Header(
        run_id=uuid.uuid4().hex[:12],
        suite=suite,
        environment=here,
        fingerprint=environment.fingerprint(here),
        command=command,
        started=now(),
        planned=plan.planned,
        seed=suite.policy.seed,
    )
    if resume and output is None:
        raise SuiteError("--resume: say which run to go on with: -o DIR")
    job = Job(
        header=header,
        out=output or Path("reports") / f"{slug}-{moment}",
        cache_dir=Cache(cache_dir).root,
        resume=resume,
        required=tuple(required),
    )
    return Session(plan, job, backends)
