"""From the command line's words to a plan and a job."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import SuiteError
from gpubench.machine.cores import usable_cores
from gpubench.machine.gpu import visible_gpus
from gpubench.records.reader import begun, scan
from gpubench.run import inventory
from gpubench.run import plan as planning
from gpubench.run.availability import catalog, device_of
from gpubench.run.cluster.ray_cluster import Cluster
from gpubench.run.driver import RunJob
from gpubench.run.record_builder import directory, new_header
from gpubench.suite import as_toml, file, grid
from gpubench.suite.types import Cell, Suite

Source = str | file.Draft
"""The name or the path of a suite, or what its file would say."""
PLAIN = "quick"
"""The shipped suite for who names none: its checks, and what a model alone is measured by."""


def check_required(required: Sequence[str], named: Sequence[str]) -> None:
    for name in required:
        if name not in named:
            raise SuiteError(f"--require {name!r}: the run has no cell of it; it has {named}")


def load(suite: Source, chosen: Mapping[str, Any]) -> Suite:
    """The suite with what the command line says instead."""
    draft = suite if isinstance(suite, file.Draft) else file.read(suite, catalog())
    return draft.suite({key: value for key, value in chosen.items() if key != "cell"})


def with_keys(cells: Sequence[Cell], keys: Sequence[str], suite: Source) -> list[Cell]:
    """Those of ``cells`` that have these keys; all, if none is given. Raises SuiteError for a key
    that ``suite`` has not here."""
    for key in keys:
        if key not in {cell.key for cell in cells}:
            name = suite if isinstance(suite, str) else suite.path.stem
            raise SuiteError(
                f"--cell {key!r}: suite {name} has no such cell here; "
                f"'{shlex.join(['gpubench', 'plan', name])} --keys' lists them"
            )
    return [cell for cell in cells if not keys or cell.key in keys]


def options(said: Mapping[str, Any]) -> Iterator[str]:
    """Keys of a suite or of a call as the command line has them, less what is None.

    A list is one value, 'batch_size': [1, 8] -> '--batch-size', '1,8'; each value of a tuple and
    each pair of a mapping has an option of its own.
    """
    for key, value in said.items():
        if isinstance(value, dict):
            value = tuple(
                f"{name}={one if isinstance(one, str) else as_toml.value(one)}"
                for name, one in value.items()
            )
        for one in value if isinstance(value, tuple) else (value,):
            text = ",".join(map(str, one)) if isinstance(one, list) else str(one)
            yield from () if one is None or one == [] else (file.option_of(key), text)


def of_words(words: Mapping[str, Any]) -> Suite:
    """A suite with these words for the workload and the path, all of them checked; what else it
    says does not matter. Raises SuiteError that names no file."""
    try:
        return file.load(PLAIN, catalog(), words)
    except SuiteError as error:
        place = f"suite {file.find(PLAIN)}"
        said = str(error).replace(f"{place}: ", "").replace(place, "the command")
        raise SuiteError(said) from error


def _spread(suite: Suite, nodes: Sequence[inventory.Node]) -> list[Cell]:
    """The cells for several machines; without ``axes.cores``, their cores are shared out."""
    device = device_of(suite, sum(node.gpus for node in nodes))
    axes = suite.axes
    most = max(-(-n // each) for n in axes.replicas for each in axes.replicas_per_device)
    cores = axes.cores or inventory.cores_of_a_device(most, nodes)
    shared = msgspec.structs.replace(suite, axes=msgspec.structs.replace(axes, cores=cores))
    return grid.expand(shared, device, cores)


def session(
    source: Source,
    chosen: Mapping[str, Any],
    cache_dir: Path | None,
    output: Path | None = None,
    resume: bool = False,
    required: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> RunJob:
    """Read the suite, resolve its device, and sort its cells into runnable and skipped.

    ``cluster``: the nodes to run on.
    """
    suite = load(source, chosen)
    cores = usable_cores()
    gpus = len(visible_gpus())
    if cluster:
        if resume and output and begun(output):
            before, _ = scan(output, [])
            cluster.keep(before.nodes or [before.environment])
        cluster.gather(suite, cache_dir)
        cells = _spread(suite, cluster.nodes)
    else:
        cells = grid.expand(suite, device_of(suite, gpus), len(cores))
    named = sorted({cell.backend for cell in cells})
    check_required(required, named)
    cells = with_keys(cells, chosen.get("cell") or (), source)
    backends = {name: base.get(name) for name in named}
    plan = planning.make(suite, cells, backends, cores, gpus, cluster.nodes if cluster else ())
    return RunJob(
        plan=plan,
        backends=backends,
        header=new_header(plan, cluster.environments if cluster else ()),
        out=output or directory(suite.name),
        cache_dir=Cache(cache_dir).root,
        resume=resume,
        required=tuple(required),
    )
