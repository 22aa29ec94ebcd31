"""A suite's cells: every combination of its axes, less the exclusions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Literal

from msgspec.structs import asdict

from gpubench.errors import SuiteError
from gpubench.suite.schema import same
from gpubench.suite.types import Axes, Boundary, Cell, Loader, OptionValue, Suite

MAX_CELLS = 10_000


def expand(suite: Suite, device: Literal["cpu", "cuda"], machine_cores: int) -> list[Cell]:
    """The cells of ``suite`` on ``device``, in the order of the file, less the exclusions.

    ``machine_cores`` is shared out over the most devices that a cell needs, unless ``axes.cores``
    says otherwise. Combinations that mean the same (a lone replica has its device to itself; only
    throughput is dispatched and has a loader) are one cell. Raises SuiteError when the exclusions
    leave none.
    """
    cells: dict[str, Cell] = {}
    for cell in combinations(suite, device, machine_cores):
        if not any(matches(rule, cell) for rule in suite.exclude):
            cells.setdefault(cell.key, cell)
    if not cells:
        raise SuiteError(f"suite {suite.name}: the exclusions leave no cell on device {device}")
    return list(cells.values())


def combinations(
    suite: Suite, device: Literal["cpu", "cuda"], machine_cores: int
) -> Iterator[Cell]:
    axes, work = suite.axes, asdict(suite.workload)
    places = list(itertools.product(axes.replicas, axes.replicas_per_device))
    cores = axes.cores or max(1, machine_cores // max(-(-n // each) for n, each in places))
    paths = list(_paths(axes))
    kinds = list(itertools.product(axes.precision, axes.input))
    ways = list(itertools.product(axes.dispatch, axes.sharing))
    points = (kinds, axes.batch_size, places, axes.scenario, paths, ways, axes.cache)
    for backend in axes.backend:
        options = axes.options.get(backend, {})
        for point, values in itertools.product(
            itertools.product(*points), itertools.product(*options.values())
        ):
            kind, batch_size, (replicas, per_device), scenario, path, way, cache = point
            (precision, taken), (dispatch, sharing) = kind, way
            shared = device == "cuda" and min(per_device, replicas) > 1
            boundary, decoder, loader, loader_cores = path
            yield Cell(
                **work,
                backend=backend,
                device=device,
                precision=precision,
                batch_size=batch_size,
                replicas=replicas,
                cores=cores if device == "cpu" else 0,
                scenario=scenario,
                boundary=boundary,
                options=dict(zip(options, values, strict=True)),
                replicas_per_device=min(per_device, replicas),
                sharing=sharing if shared else "auto",
                dispatch=dispatch if scenario == "throughput" else "independent",
                decoder=decoder,
                loader=loader if scenario == "throughput" else "auto",
                loader_cores=loader_cores if device == "cpu" and scenario == "throughput" else 0,
                input=taken,
                cache=cache if (scenario, boundary) == ("latency", "compute") else "warm",
            )


def anywhere(suite: Suite) -> Iterator[Cell]:
    """`combinations` on every device that the suite allows."""
    both: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    for device in both:
        if suite.axes.device in ("auto", device):
            yield from combinations(suite, device, 1)


def _paths(axes: Axes) -> Iterator[tuple[Boundary, str, Loader, int]]:
    """Boundary, decoder, loader and its cores; only a pipeline has them."""
    for boundary in axes.boundary:
        if boundary == "pipeline":
            for way in itertools.product(axes.decoder, axes.loader, axes.loader_cores):
                yield boundary, *way
        else:
            yield boundary, "pil", "auto", 0


def matches(rule: Mapping[str, OptionValue], cell: Cell) -> bool:
    return all(same(cell.options.get(k, getattr(cell, k, None)), v) for k, v in rule.items())
