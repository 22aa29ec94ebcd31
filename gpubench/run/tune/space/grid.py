"""The cells of a space, each canonical: what means the same is one cell.

Options at their default or without effect are left out, so a cell has the key that it would have
in a suite which does not name them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec.structs import asdict

from gpubench.errors import SuiteError
from gpubench.run.tune.space import options as space_options
from gpubench.run.tune.space.axes import Placement, Space
from gpubench.suite.grid import MAX_CELLS
from gpubench.suite.schema import nearest, show
from gpubench.suite.types import Catalog, Cell, Input, Option, OptionValue, Precision

Unsupported = Callable[[Cell], str | None]
_AXES = ("backend", "precision", "input", "batch_size", "replicas", "cores", "replicas_per_device")
_MOST = 3 * MAX_CELLS
"""More than a suite may have: a search measures some. One GPU has 8,400."""
_MOST_TRIED = 20 * MAX_CELLS
"""Combinations asked after, supported or not."""


def cells(space: Space, catalog: Catalog, unsupported: Unsupported) -> list[Cell]:
    """Every configuration that its backend supports, in a fixed order, each once.

    Raises SuiteError for an unknown backend or one that declares its options wrongly, and where
    there is no cell, or more than `_MOST`.
    """
    found: dict[str, Cell] = {}
    reasons: dict[str, None] = {}
    for n, cell in enumerate(_grid(space, catalog)):
        if reason := unsupported(cell):
            reasons[f"{cell.backend}: {reason}"] = None
        else:
            found.setdefault(cell.key, cell)
        if len(found) > _MOST or n > _MOST_TRIED:
            raise _too_many(space)
    if not found:
        why = "; ".join(list(reasons)[:3])
        raise SuiteError(f"no configuration of the space can run here: {why}")
    return list(found.values())


def _grid(space: Space, catalog: Catalog) -> Iterator[Cell]:
    """The product of the axes, options that mean the same once."""
    for name in space.backends:
        if name not in catalog.backends:
            raise SuiteError(f"--backend {show(name)}: {nearest(name, catalog.backends)}")
        space_options.check(name, catalog.backends[name])
    for backend, precision in itertools.product(space.backends, space.precisions):
        values = space.options.get(backend, {})
        if _count(values) > _MOST:
            raise _too_many(space)
        options, fields = catalog.backends[backend], fields_of(space, precision)
        combinations = list(space_options.combinations(options, values, fields))
        for each, placement, batch_size, given in itertools.product(
            combinations, space.placements, space.batch_sizes, space.inputs
        ):
            yield cell_of(space, backend, precision, placement, batch_size, each, given)


def _count(values: Mapping[str, Sequence[OptionValue]]) -> int:
    """Combinations of a backend's options."""
    return math.prod(len(each) for each in values.values())


def fields_of(space: Space, precision: Precision) -> dict[str, str]:
    """Of a cell in ``space``, what `options.FIELDS` names."""
    return {
        "device": space.device,
        "precision": precision,
        "scenario": space.scenario,
        "boundary": space.boundary,
    }


def cell_of(
    space: Space,
    backend: str,
    precision: Precision,
    placement: Placement,
    batch_size: int,
    options: dict[str, OptionValue],
    given: Input = "float32",
) -> Cell:
    """One cell of ``space``; ``options`` are canonical."""
    return Cell(
        **asdict(space.workload),
        backend=backend,
        device=space.device,
        precision=precision,
        batch_size=batch_size,
        replicas=placement.replicas,
        cores=placement.cores if space.device == "cpu" else 0,
        scenario=space.scenario,
        boundary=space.boundary,
        options=options,
        replicas_per_device=min(placement.replicas_per_device, placement.replicas),
        decoder=space.decoder if space.boundary == "pipeline" else "pil",
        input=given,
    )


def _too_many(space: Space) -> SuiteError:
    """Says which axes are long, the longest first."""
    sizes = {
        "precision": len(space.precisions),
        "input": len(space.inputs),
        "batch_size": len(space.batch_sizes),
        "placement": len(space.placements),
    } | {f"options.{b}": _count(space.options.get(b, {})) for b in space.backends}
    longest = sorted(sizes.items(), key=lambda item: -item[1])[:4]
    words = ", ".join(f"{name} ({size:,})" for name, size in longest)
    return SuiteError(
        f"the space has more than {_MOST:,} configurations; shorten its axes with "
        f"--backend, --precision, --input, --batch-size and --replicas; the longest: {words}"
    )


def coordinates(cell: Cell, options: tuple[Option, ...]) -> dict[str, OptionValue]:
    """What a cell is in a space: its axes, and each option that has an effect in it.

    ``options``: those of its backend. {'backend': 'openvino', ..., 'openvino.num_streams': 2}.
    """
    named = {f"{cell.backend}.{k}": v for k, v in space_options.effective(options, cell).items()}
    return {name: getattr(cell, name) for name in _AXES} | named
