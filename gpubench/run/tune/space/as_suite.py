"""Cells as suites: of a search's header, and of one cell as a file that reads back as that cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubench.suite import as_toml
from gpubench.suite.types import Axes, Cell, OptionValue, Policy, Suite

_AXES = ("backend", "precision", "batch_size", "replicas", "replicas_per_device", "scenario",
         "boundary", "dispatch", "input", "decoder", "loader", "loader_cores")  # fmt: skip
"""Those that hold several values."""


def suite(
    name: str, cells: Sequence[Cell], policy: Policy, baseline_backend: str, description: str
) -> Suite:
    """What the header of a search's records says of ``cells``, at least one: the values they have.

    Options appear with the values that cells name. The product of the axes is more than the cells,
    which stand in `Header.planned`; ``cores`` is 0 where they differ.
    """
    first = cells[0]
    options: dict[str, dict[str, dict[OptionValue, None]]] = {}
    for cell in cells:
        for key, value in cell.options.items():
            options.setdefault(cell.backend, {}).setdefault(key, {})[value] = None
    cores = {cell.cores for cell in cells}
    fields: dict[str, Any] = {
        key: tuple(dict.fromkeys(getattr(cell, key) for cell in cells)) for key in _AXES
    }
    axes = Axes(
        **fields,
        device=first.device,
        cores=first.cores if len(cores) == 1 else 0,
        options={b: {k: tuple(v) for k, v in found.items()} for b, found in options.items()},
    )
    return Suite(
        name=name,
        description=description,
        workload=first.workload,
        axes=axes,
        policy=policy,
        baseline=baseline_backend,
    )


def to_toml(cell: Cell, policy: Policy, name: str, description: str) -> str:
    """A suite of one cell: loaded and expanded it gives ``cell`` and ``policy`` again.

    ``name`` stands in a comment: a suite is called as its file is.
    """
    return as_toml.to_toml(suite(name, [cell], policy, cell.backend, description), name)
