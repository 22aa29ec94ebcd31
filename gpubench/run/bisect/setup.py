"""Words of the command line -> the job of a bisection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpubench import plugins
from gpubench.errors import InputError, SuiteError
from gpubench.machine.cores import usable_cores
from gpubench.machine.gpu import visible_gpus
from gpubench.run.availability import device_of
from gpubench.run.bisect.commits import Commits
from gpubench.run.bisect.driver import BisectJob
from gpubench.run.bisect.releases import Releases
from gpubench.run.record_builder import claimed, directory
from gpubench.run.setup import load, with_keys
from gpubench.suite import grid
from gpubench.suite.types import Rule


def bisection(
    suite_name: str,
    chosen: Mapping[str, Any],
    ends: tuple[str, str],
    package: str | None,
    rule: Rule,
    budget_s: float,
    cache_root: Path,
    output: Path | None,
    resume: bool,
    metric: str = "speed",
) -> BisectJob:
    """``ends``: good and bad, commits or releases of ``package``. Raises InputError."""
    if resume and output is None:
        raise InputError("--resume: say which bisection to go on with: -o DIR")
    suite = load(suite_name, chosen)
    cells = grid.expand(suite, device_of(suite, len(visible_gpus())), len(usable_cores()))
    wanted = chosen.get("cell") or ()
    if len(wanted) > 1:
        raise SuiteError(f"--cell: a bisection follows one cell, not {len(wanted)}")
    labels = [cell.label for cell in with_keys(cells, wanted, suite_name)]
    if metric != "speed" and len(labels) > 1:
        raise SuiteError(
            f"--metric {metric}: follows one cell, and the suite has {len(labels)}: name it with "
            "--cell"
        )
    for option, number in zip(("--good", "--bad"), ends, strict=True):
        if package and not plugins.serves(number, need := plugins.declared(package)):
            raise InputError(f"{option} {number!r}: gpubench needs {package} {need}")
    row = Releases(package, *ends, cache_root) if package else Commits(*ends, cache_root)
    return BisectJob(
        row=row,
        suite=suite_name,
        chosen={key: value for key, value in chosen.items() if key != "cell" and value is not None},
        cell=labels[0] if wanted else "",
        rule=rule,
        budget_s=budget_s,
        out=output or claimed(directory(f"bisect-{suite.name}")),
        cache_dir=cache_root,
        metric=metric,
        resume=resume,
    )
