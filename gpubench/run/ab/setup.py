"""Words of the command line -> the job of an interleaved A/B."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import SuiteError
from gpubench.machine.cores import usable_cores
from gpubench.machine.gpu import visible_gpus
from gpubench.records.record import Pairing
from gpubench.run import plan as planning
from gpubench.run.ab import arms, driver
from gpubench.run.ab.pair_runner import ARMS
from gpubench.run.availability import catalog, device_of
from gpubench.run.record_builder import directory, new_header
from gpubench.run.setup import check_required
from gpubench.suite import file
from gpubench.suite import grid as suite_grid
from gpubench.suite.types import Rule


def comparison(
    suite_name: str,
    chosen: Mapping[str, Any],
    specs: tuple[arms.Spec, arms.Spec],
    pythons: tuple[Path | None, Path | None],
    rule: Rule | Callable[[Mapping[str, float]], Rule],
    budget_s: float,
    cache_dir: Path | None,
    output: Path | None,
    resume: bool,
    required: Sequence[str],
    reference: tuple[str, str] | None = None,
) -> driver.ABJob:
    """Both arms of an interleaved A/B: (baseline, candidate) in ``specs`` and ``pythons``.

    ``rule``: or what makes one of the suite's ``gate``. ``reference``: the baseline's interpreter
    was made from (name, commit).
    """
    cores, gpus = usable_cores(), len(visible_gpus())
    wanted = chosen.get("cell") or ()
    chosen = {key: value for key, value in chosen.items() if key != "cell" and value is not None}
    draft = file.read(suite_name, catalog())
    suites = [arms.suite_of(spec, draft, chosen) for spec in specs]
    grids = [suite_grid.expand(s, device_of(s, gpus), len(cores)) for s in suites]
    matched = arms.match(*specs, *grids)
    kept = {cell.key for pair in matched for cell in pair}
    for key in wanted:
        if key not in kept:
            raise SuiteError(f"--cell {key!r}: neither arm has such a cell here")
    matched = [pair for pair in matched if not wanted or {c.key for c in pair} & {*wanted}]
    backends = {n: base.get(n) for n in sorted({c.backend for pair in matched for c in pair})}
    check_required(required, sorted(backends))
    rule = rule if isinstance(rule, Rule) else rule(suites[1].gate)
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
        sides.append(driver.Side(arm, plan, header, pythons[place], commit=commit))
    if resume and output is None:
        raise SuiteError("--resume: say which A/B to go on with: -o DIR")
    return driver.ABJob(
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
