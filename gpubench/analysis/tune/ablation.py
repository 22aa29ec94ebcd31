"""What each choice of a recommended configuration is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from gpubench.analysis.stats import Estimate
from gpubench.analysis.tune import racing
from gpubench.analysis.tune.racing import Standing
from gpubench.analysis.tune.result import View
from gpubench.suite.types import Cell

AXES = {
    "backend": "backend", "precision": "precision", "input": "input", "batch size": "batch_size",
    "replicas": "replicas", "replicas per device": "replicas_per_device",
    "cores of a replica": "cores", "decoder": "decoder", "loader": "loader",
    "loading cores": "loader_cores",
}  # fmt: skip
"""What a search chooses beside the backends' options, and the field of the cell."""


class Choice(Struct, frozen=True, kw_only=True):
    """What one choice of the recommended configuration is worth."""

    name: str
    """'precision', 'batch size', 'onnxruntime.spinning'."""
    value: str
    """The recommended configuration's."""
    other: str
    """That of the best configuration with another one."""
    rival: Standing
    worth: Estimate
    """Cost of the best configuration with another value / the recommended one's: 1.5 is a half
    more time. Below 1 it would be faster: it broke no limit and the search told them not apart."""


class Coordinates:
    """What can be chosen in a space: axes that differ in it, and every backend's options."""

    def __init__(self, planned: Sequence[Cell]) -> None:
        values = {name: {getattr(c, field) for c in planned} for name, field in AXES.items()}
        self.axes = [name for name, seen in values.items() if len(seen) > 1]
        if len({(c.replicas, c.replicas_per_device, c.cores) for c in planned}) == len(
            {(c.replicas, c.replicas_per_device) for c in planned}
        ):  # they share out the machine: no choice of its own
            self.axes = [name for name in self.axes if name != "cores of a replica"]
        self.options: dict[str, dict[str, None]] = {}
        for c in planned:
            self.options.setdefault(c.backend, {}).update(dict.fromkeys(c.options))

    def names(self, cell: Cell) -> list[str]:
        """'precision', 'onnxruntime.spinning': what was chosen for ``cell``."""
        own = (f"{cell.backend}.{name}" for name in sorted(self.options.get(cell.backend, ())))
        return [*self.axes, *own]

    def value(self, cell: Cell, name: str) -> str:
        """An option that a cell leaves out is at its default, or has no effect there; of a cell of
        another backend: that backend."""
        if name in AXES:
            return str(getattr(cell, AXES[name]))
        backend, _, option = name.partition(".")
        return str(cell.options.get(option, "default")) if cell.backend == backend else cell.backend


def of(found: View) -> list[Choice]:
    """Each choice of the recommended configuration, the one that is worth most first.

    Best without (an ablation in a space whose parts depend on each other): of all configurations
    that were measured, keep the limits and have another value there, the best one, whatever else
    it has. The values are no sum: what one choice loses another may make good.
    """
    if found.best is None:
        return []
    space, cell = Coordinates(found.file.header.planned), found.best.cell
    rivals = [s for s in found.standings if s.status in racing.RANKED and s.ratio < math.inf]
    made = []
    for name in space.names(cell):
        value = space.value(cell, name)
        others = [s for s in rivals if space.value(s.cell, name) != value]
        if others:
            s = min(others, key=lambda s: s.ratio)
            made.append(Choice(name=name, value=value, other=space.value(s.cell, name), rival=s,
                               worth=_worth(s, found.best)))  # fmt: skip
    return sorted(made, key=lambda c: -(c.worth.value or 0.0))


def _worth(rival: Standing, best: Standing) -> Estimate:
    """Costs are known against the leader's, which the recommended one nearly always is."""
    worth, own = rival.behind or Estimate(), best.behind
    if best.status == "leader" or not worth.value or own is None or not own.value:
        return worth
    return Estimate(value=worth.value / own.value, n=worth.n, why="compared by way of the leader")
