"""What to try next: the configurations that may still be the best, by what was measured of others.

A pure function of the records, so that a search that goes on proposes what it would have.
"""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from gpubench.analysis import metrics, race
from gpubench.analysis.metrics import Best
from gpubench.goal import Limit, Metric, Search
from gpubench.record import WRONG, Record
from gpubench.run.predict import Coordinates, Predictor
from gpubench.suite import Cell, OptionValue

if TYPE_CHECKING:
    import optuna

STARTUP = 10
"""Trials by `Grid` before `Tpe` has anything to learn from."""
ASKED = 3
"""Suggestions that may be known by now, before a neighbour of the best is taken instead."""
Values = tuple[OptionValue, ...]

OPTIMISM = 2.0
"""Standard deviations by which a prediction may be too pessimistic."""


class Proposals:
    """What is left to try."""

    def __init__(
        self, cells: Sequence[Cell], search: Search, best: Best,
        coordinates: Callable[[Cell], Coordinates],
    ) -> None:  # fmt: skip
        self._predictor = Predictor({cell.key: _point(coordinates(cell)) for cell in cells})
        self._search, self._best = search, best

    def next(self, unmeasured: Sequence[Cell], records: Sequence[Record]) -> Cell | None:
        """The most promising one; None: nothing is likely to beat what was measured."""
        return next(iter(self.promising(unmeasured, records)), None)

    def promising(self, unmeasured: Sequence[Cell], records: Sequence[Record]) -> list[Cell]:
        """Those that may keep the limits and beat all that was measured, the most promising first.

        Left out is also what gave wrong answers in another size; what a backend computes in a
        precision that has given wrong ones comes after what has not, and its options after its
        defaults. While nothing is known to keep the limits, only they count.
        """
        goal = self._search.goal
        tried: dict[str, list[Record]] = {}
        for record in records:
            tried.setdefault(record.cell.key, []).append(record)
        standings = race.judge([own[0].cell for own in tried.values()], records, self._search)
        good = [tried[s.cell.key] for s in standings if s.status not in ("failed", "ruled-out")]
        kept = [
            tried[s.cell.key] for s in standings
            if s.status in race.RANKED and not any(limit.hopeless for limit in s.limits)
        ]  # fmt: skip
        wrong = {answers(r.cell) for r in records if r.kind in WRONG}
        doubts = Counter((r.cell.backend, r.cell.precision) for r in records if r.kind in WRONG)
        left = [c for c in unmeasured if not kept or answers(c) not in wrong]
        for limit in goal.limits:
            bound = metrics.cost(limit.metric, limit.bound)
            least = self._least(limit.metric, left, good)
            left = [c for c in left if least[c.key] <= bound]
        leads = min((_cost(own, goal.objective) for own in kept), default=math.inf)
        least = self._least(goal.objective, left, good)
        able = [c for c in left if least[c.key] < leads]
        known = {(own[0].cell.backend, own[0].cell.precision) for own in tried.values()}

        def order(cell: Cell) -> tuple[float, ...]:
            """A backend's defaults come before its options in each precision."""
            kind = cell.backend, cell.precision
            return doubts[kind], 0 if kind in known else len(cell.options), least[cell.key]

        return sorted(able, key=order)

    def _least(
        self, metric: Metric, cells: Sequence[Cell], good: Sequence[Sequence[Record]]
    ) -> dict[str, float]:
        """Key -> log cost that a cell may well have, if all is for the best."""
        seen = {own[0].cell.key: cost for own in good if (cost := _cost(own, metric)) < math.inf}
        bounds = {
            cell.key: metrics.cost(metric, bound)
            for cell in (*(own[0].cell for own in good), *cells)
            if (bound := self._best(cell, metric))
        }
        keys = [cell.key for cell in cells]
        if not bounds.keys() >= {*seen, *keys}:
            bounds = {}  # of some only they would say nothing about the others
        found = self._predictor.predict(seen, bounds, keys)
        return {key: mean - OPTIMISM * sd for key, (mean, sd) in found.items()}


def answers(cell: Cell) -> tuple[object, ...]:
    """The same for cells whose answers are the same but for rounding: other sizes of one thing."""
    return cell.backend, cell.precision, tuple(sorted(cell.options.items()))


def _point(coordinates: Coordinates) -> Coordinates:
    """With replicas, their cores and who shares a device as one coordinate: each alone is none."""
    own = dict(coordinates)
    place = [own.pop(name) for name in ("replicas", "cores", "replicas_per_device")]
    return own | {"placement": "x".join(map(str, place))}


def _cost(records: Sequence[Record], metric: Metric) -> float:
    """Mean log cost; infinite where nothing says."""
    found = [metrics.cost(metric, v) for r in records if (v := metrics.value(r, metric))]
    return fmean(found) if found else math.inf


class Grid:
    """Every cell in the end: backends share the time evenly, each by its best possible value."""

    def __init__(self, search: Search, best: Best) -> None:
        self._search, self._best = search, best

    def next(self, unmeasured: Sequence[Cell], records: Sequence[Record]) -> Cell | None:
        """One of the backend that has had the least time by now."""
        spent: dict[str, float] = defaultdict(float)
        for record in records:
            spent[record.cell.backend] += record.wall_s
        wrong = {answers(r.cell) for r in records if r.kind in WRONG}
        return min(
            unmeasured,
            key=lambda c: (answers(c) in wrong, spent[c.backend], self.rank(c)),
            default=None,
        )

    def rank(self, cell: Cell) -> tuple[float, float]:
        """The most promising first; among equals, which a bound cannot tell apart, any."""
        objective = self._search.goal.objective
        bound = self._best(cell, objective)
        sign = -1 if objective.more_is_better else 1
        any_ = random.Random(f"{self._search.seed}/{cell.key}").random()  # noqa: S311
        return math.inf if bound is None else sign * bound, any_


class Tpe:
    """Optuna's tree-structured Parzen estimator over the coordinates of the cells.

    Which coordinates there are, and their values, depends on those before (the backend's options),
    so they are suggested one after the other, each among the values that are still possible.
    `Grid` names the first STARTUP cells.
    """

    def __init__(
        self, cells: Sequence[Cell], search: Search, best: Best,
        coordinates: Callable[[Cell], Coordinates],
    ) -> None:  # fmt: skip
        self._search, self._startup = search, Grid(search, best)
        self._points = {cell.key: _point(coordinates(cell)) for cell in cells}

    def next(self, unmeasured: Sequence[Cell], records: Sequence[Record]) -> Cell | None:
        """Where the estimator expects the most among ``unmeasured``."""
        costs = self._costs(records)
        if not unmeasured or len(costs) < STARTUP:
            return self._startup.next(unmeasured, records)
        import optuna

        study, left = self._study(costs), {cell.key: cell for cell in unmeasured}
        for _ in range(ASKED):
            trial = study.ask()
            key = self._walk(partial(_suggest, trial))
            if key in left:
                return left[key]
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # it is known by now
        best = self._points[min(costs, key=costs.__getitem__)]
        return min(unmeasured, key=lambda c: (self._apart(c, best), self._startup.rank(c)))

    def _apart(self, cell: Cell, point: Coordinates) -> int:
        """In how many coordinates ``cell`` differs from ``point``."""
        own = self._points[cell.key]
        return sum(own.get(name) != value for name, value in point.items())

    def _costs(self, records: Sequence[Record]) -> dict[str, float]:
        """Key -> log(cost), smaller is better.

        What fails, or breaks a limit, costs more than all that does not.
        """
        goal = self._search.goal
        sign = -1 if goal.objective.more_is_better else 1
        logs: dict[str, float] = {}
        broken: dict[str, float] = {}
        for key, own in _by_cell(records).items():
            values = [
                v for r in own if r.status == "ok" and (v := metrics.value(r, goal.objective))
            ]
            if values and all(r.status == "ok" for r in own):
                logs[key] = sign * fmean(map(math.log, values))
                broken[key] = sum(_excess(own, limit) for limit in goal.limits)
        worst = max(logs.values(), default=0.0)
        costs = {k: worst + broken[k] if broken[k] else log for k, log in logs.items()}
        worst = max(costs.values(), default=0.0)
        failed = (r.cell.key for r in records if r.status != "ok")
        return costs | dict.fromkeys(failed, worst + 1)

    def _study(self, costs: Mapping[str, float]) -> optuna.Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                multivariate=True, group=True, n_startup_trials=0,
                seed=self._search.seed + len(costs),
            )  # fmt: skip
        study = optuna.create_study(sampler=sampler)
        for key, cost in costs.items():
            if key in self._points:
                study.add_trial(self._trial(key, cost))
        return study

    def _trial(self, key: str, cost: float) -> optuna.trial.FrozenTrial:
        import optuna

        params: dict[str, Any] = {}
        distributions: dict[str, Any] = {}

        def taken(name: str, values: Values) -> OptionValue:
            value, full = self._points[key][name], _full_name(name, values)
            ordered = _ordered(values)
            params[full] = values.index(value) if ordered else value
            distributions[full] = (
                optuna.distributions.IntDistribution(0, len(values) - 1)
                if ordered
                else optuna.distributions.CategoricalDistribution(values)
            )
            return value

        self._walk(taken)
        return optuna.trial.create_trial(params=params, distributions=distributions, value=cost)

    def _walk(self, choose: Callable[[str, Values], OptionValue]) -> str:
        """The key of the cell that ``choose`` leads to: (coordinate, its values) -> one of them."""
        left = self._points
        names = list(dict.fromkeys(name for point in left.values() for name in point))
        while len(left) > 1:
            # what only some have depends on something that is still to be chosen
            shared = (n for n in names if all(n in point for point in left.values()))
            if (name := next(shared, None)) is None:
                break
            names.remove(name)
            values = tuple(sorted({point[name] for point in left.values()}, key=_order))
            if len(values) > 1:
                value = choose(name, values)
                left = {key: point for key, point in left.items() if point[name] == value}
        return next(iter(left))


def _suggest(trial: optuna.Trial, name: str, values: Values) -> OptionValue:
    full = _full_name(name, values)
    if _ordered(values):
        return values[int(trial.suggest_int(full, 0, len(values) - 1))]
    chosen: OptionValue = trial.suggest_categorical(full, values)
    return chosen


def _full_name(name: str, values: Values) -> str:
    """Of a parameter: Optuna wants one that always has the same values."""
    return f"{name} {values}"


def _ordered(values: Values) -> bool:
    """Whether neighbours are alike."""
    return len(values) > 2 and all(type(value) in (int, float) for value in values)


def _order(value: OptionValue) -> tuple[str, OptionValue]:
    kind = "number" if isinstance(value, int | float) else "text"
    return kind, value


def _by_cell(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record.cell.key].append(record)
    return found


def _excess(records: Sequence[Record], limit: Limit) -> float:
    """By how much a limit is broken, in logs; 0.0: it is not, as far as the mean says."""
    values = [v for r in records if (v := metrics.value(r, limit.metric))]
    if not values:
        return 0.0
    over = fmean(map(math.log, values)) - math.log(limit.bound)
    return max(0.0, -over if limit.metric.more_is_better else over)
