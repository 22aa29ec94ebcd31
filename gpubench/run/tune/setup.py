"""From the command line's words to a search. What is wrong with them is told before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import CalibrationError, InputError
from gpubench.machine.cores import usable_cores
from gpubench.machine.gpu import visible_gpus
from gpubench.machine.telemetry.energy import Board, Rapl
from gpubench.run import availability, inspect, record_builder, setup
from gpubench.run import plan as planning
from gpubench.run.ab import arms
from gpubench.run.tune import space
from gpubench.run.tune.driver import TuneJob
from gpubench.suite.goal import Goal, Search
from gpubench.suite.schema import nearest
from gpubench.suite.types import MOST_SAMPLES, Catalog, Cell, Policy, Suite, Workload, title
from gpubench.workload.data import datasets
from gpubench.workload.models import registry

SAMPLE_S = 0.6
"""Of one trial: short, since what may still be best is measured again and again."""
ENERGY_S = 8.0
"""Where energy counts, which is refused of windows below 5 s; truncation takes up to half."""
LEAST_TIMEOUT_S, MOST_TIMEOUT_S = 60.0, 300.0
"""Of one trial; between them half of the budget."""
AXES = ("backend", "precision", "input", "batch_size", "replicas")
"""Whose values may be named, as lists."""
NAMED = (*AXES, *Workload.__struct_fields__, "device", "boundary", "decoder", "option")
CALIBRATES = "calibration_images"
"""The option of backends that calibrate int8: how many pictures that takes."""
ACCURACY_IMAGES = 256
"""Where a floor of accuracy is given."""


def job(
    chosen: Mapping[str, Any],
    goal: Goal,
    floors: Mapping[str, Any],
    *,
    budget_s: float,
    seed: int,
    baseline: Sequence[str],
    cache_dir: Path | None,
    output: Path | None,
    resume: bool,
) -> TuneJob:
    """The search that was asked for.

    ``chosen``: model, weights, images, labels, calibration, device, boundary, decoder; backend,
    precision, input, batch_size, replicas (lists); option ('NAME=VALUE', ...).
    ``floors``: what answers must keep, fields of the policy. None: not given. ``baseline``:
    'KEY=VALUE,...'.
    Raises InputError.
    """
    for key in chosen:
        if key not in NAMED:
            option = "--" + key.replace("_", "-")
            raise InputError(f"{option}: a search is not told that; {nearest(key, NAMED)}")
    catalog, cores, gpus = availability.catalog(), usable_cores(), len(visible_gpus())
    plain = _plain(chosen)
    device = availability.device_of(plain, gpus)
    if device == "cuda" and not gpus:
        raise InputError("--device cuda: no NVIDIA GPU is visible; see `nvidia-smi`, or use cpu")
    _check_energy(goal, device)
    own = registry.seen(plain.workload)  # what a file fixes
    if own and not chosen.get("batch_size"):
        batch = inspect.network(plain, cache_dir).batch if own.literal else own.batch
        chosen = {**chosen, "batch_size": [batch] if batch else None}
    asked = space.default(
        catalog, plain.workload, device=device, cores=len(cores), gpus=gpus, goal=goal,
        boundary=plain.axes.boundary[0], decoder=plain.axes.decoder[0],
    )  # fmt: skip
    asked = space.chosen(asked, {key: chosen.get(key) for key in AXES})
    asked = replace(asked, backends=_here(asked.backends, chosen.get("backend") or ()))
    asked = space.trying(asked, catalog, chosen.get("option") or ())
    words = {"precision": own.precision} if own and own.precision else {}
    words |= {"backend": own.backend} if own and own.backend else {}
    words |= arms.parse("--baseline", baseline, same=()).values if baseline else {}
    today = space.baseline(words, asked, catalog)
    backends = {name: base.get(name) for name in {*asked.backends, *(c.backend for c in today)}}
    found = space.cells(asked, catalog, partial(_unsupported, backends))
    cells = list({cell.key: cell for cell in (*today, *found)}.values())
    suite = space.suite(
        f"tune-{Path(plain.workload.model).stem}", cells, policy(floors, goal, budget_s, seed),
        today[0].backend, f"A search: {goal.objective.name} of {title(plain.workload.model)}",
    )  # fmt: skip
    cache = Cache(cache_dir)
    plan = _calibrated(planning.make(suite, cells, backends, cores, gpus), catalog, cache)
    _check_today(today, plan)
    if reason := planning.undecidable(suite, cache):
        raise InputError(reason.replace("accuracy_images", "--accuracy-images"))
    keys = tuple(cell.key for cell in today)
    search = Search(goal=goal, baseline=keys, budget_s=budget_s, seed=seed)
    return TuneJob(
        header=replace(record_builder.new_header(plan), search=search, planned=cells, seed=seed),
        search=search,
        plan=plan,
        backends=backends,
        out=output or record_builder.directory(suite.name),
        cache_dir=cache.root,
        resume=resume,
    )


def policy(floors: Mapping[str, Any], goal: Goal, budget_s: float, seed: int) -> Policy:
    """How a trial is measured."""
    energy = any(m.kind == "energy" for m in goal.metrics)
    given = {name: floor for name, floor in floors.items() if floor is not None}
    if given.keys() & {"min_accuracy", "max_accuracy_drop"}:
        given = {"accuracy_images": ACCURACY_IMAGES} | given
    return Policy(
        repeats=1, max_repeats=1, warmup_iterations=3, warmup_s=0.2, block_s=0.1,
        duration_s=ENERGY_S if energy else SAMPLE_S, budget_s=budget_s,
        max_samples=MOST_SAMPLES if energy else Policy().max_samples,
        timeout_s=min(MOST_TIMEOUT_S, max(LEAST_TIMEOUT_S, budget_s / 2)), seed=seed,
        prepare_timeout_s=min(Policy().prepare_timeout_s, max(LEAST_TIMEOUT_S, budget_s)), **given,
    )  # fmt: skip


def _plain(chosen: Mapping[str, Any]) -> Suite:
    """A suite with the words for the workload and the path, all of them checked."""
    given = {key: chosen.get(key) for key in msgspec.structs.asdict(Workload())}
    given["device"] = chosen.get("device")
    given |= {key: v and [v] for key in ("boundary", "decoder") if (v := chosen.get(key))}
    return setup.of_words(given)


def _check_energy(goal: Goal, device: str) -> None:
    """InputError where energy counts and cannot be counted."""
    counts = any(m.kind == "energy" for m in goal.metrics)
    if device == "cpu" and counts and Rapl().read() is None and Board().watts() is None:
        raise InputError(
            "energy cannot be measured here: there is no counter of the CPU's in "
            "/sys/class/powercap, or it may not be read (see `gpubench doctor`)"
        )


def _here(backends: Sequence[str], named: Sequence[str]) -> tuple[str, ...]:
    """Those of ``backends`` that run on this machine. InputError for one of ``named`` that does
    not, and where none is left."""
    lacks = availability.lacks({name: base.get(name) for name in backends})
    for name in named:
        if name in lacks:
            raise InputError(f"--backend {name}: {lacks[name].reason}; {lacks[name].remedy}")
    kept = tuple(name for name in backends if name not in lacks)
    if not kept:
        raise InputError("no backend runs on this machine; see `gpubench doctor`")
    return kept


def _unsupported(backends: Mapping[str, base.Backend], cell: Cell) -> str | None:
    found = availability.unsupported(cell, backends[cell.backend])
    return found.reason if isinstance(found, availability.Lack) else found


def _calibrated(plan: planning.Plan, catalog: Catalog, cache: Cache) -> planning.Plan:
    """``plan`` less what is int8 where there are too few pictures to calibrate on: no search finds
    that out configuration by configuration. Raises CalibrationError where they were named."""
    short: dict[int, CalibrationError | None] = {}
    skips = []
    for cell in plan.cells:
        known = {o.name: o.default for o in catalog.backends[cell.backend]} | cell.options
        if cell.precision != "int8" or CALIBRATES not in known:
            continue
        count = int(known[CALIBRATES])
        if count not in short:
            short[count] = datasets.uncalibrated(cell.workload, cache, count)
        if error := short[count]:
            if cell.calibration:
                raise error
            reason, _, _ = str(error).partition("; ")
            remedy = f"--calibration FOLDER with at least {count}"
            skips.append(planning.Skip(cell, "unsupported", reason, remedy))
    gone = {skip.cell.key for skip in skips}
    left = [cell for cell in plan.cells if cell.key not in gone]
    if not left:
        raise InputError(f"no configuration of the space can run here: {skips[0].reason}; "
                         f"{skips[0].remedy}")  # fmt: skip
    return replace(plan, cells=left, skips=plan.skips + skips)


def _check_today(today: Sequence[Cell], plan: planning.Plan) -> None:
    """InputError where nothing of what is to be beaten can run here."""
    keys = {cell.key for cell in today}
    skips = [skip for skip in plan.skips if skip.cell.key in keys]
    if len(skips) == len(today):
        remedy = skips[0].remedy or "name another one: --baseline KEY=VALUE,..."
        raise InputError(f"today's default, {today[0].label}: {skips[0].reason}; {remedy}")
