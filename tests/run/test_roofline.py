"""What is asked of an agent for the roofline of cells, and what of its answers a run survives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpubench.errors import GpubenchError
from gpubench.records.record import NO_CEILING, Ceiling, Record, Work
from gpubench.run import driver, setup
from gpubench.run.agent.client import OnProgress
from gpubench.run.agent.messages import (
    Count,
    Counted,
    Failure,
    Gauge,
    Gauged,
    Preloaded,
    Reply,
    Request,
    Waiting,
)
from gpubench.run.roofline import Ceilings
from gpubench.run.watcher import Silent
from gpubench.suite.types import Cell
from tests.report import make

WORK = Work(flops=8e9, weights=25e6, activations=20e6, ends=150e3)
RATES = {"fp32": 100e9, "bf16": 300e9, "fp16": 5e9, "int8": 600e9}


class Agent:
    """Answers by type of request; remembers what it was asked."""

    def __init__(self, **answers: Reply | Exception) -> None:
        self.answers, self.asked = answers, list[Request]()

    def start(self) -> Preloaded:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def ask(self, request: Request, progress: OnProgress | None = None) -> Reply:
        self.asked.append(request)
        name = type(request).__name__
        if answer := self.answers.get(name):
            if isinstance(answer, Exception):
                raise answer
            return answer
        if isinstance(request, Count):
            return Counted(WORK)
        assert isinstance(request, Gauge)
        return Gauged({t: RATES[t] for t in request.types}, 40e9 * request.memory, 1e6)

    def gauges(self) -> list[Gauge]:
        return [request for request in self.asked if isinstance(request, Gauge)]


class Computes:
    """A backend."""

    computes = roofline = True


class Nothing:
    computes = False


class Refuses:
    computes, roofline = True, False


BACKENDS: dict[str, Any] = {"torch-eager": Computes(), "null": Nothing(), "fake": Refuses()}


def cores_of(cell: Cell) -> list[tuple[int, ...]]:
    """As the plan's: replica i has cores i * n, ..."""
    n = cell.cores
    return [tuple(range(i * n, (i + 1) * n)) for i in range(cell.replicas)]


def ceilings(agent: Agent) -> Ceilings:
    return Ceilings(agent, cores_of, BACKENDS)


def test_each_place_type_and_workload_is_asked_for_once() -> None:
    agent = Agent()
    found = ceilings(agent)
    cells = [make.cell(precision=p, batch_size=b, replicas=r)
             for p in ("fp32", "bf16", "int8") for b in (1, 8) for r in (1, 2)]  # fmt: skip
    found.measure(cells, Silent())
    assert [type(request) for request in agent.asked] == [Gauge, Gauge, Count]
    assert [gauge.cores for gauge in agent.gauges()] == [(0,), (0, 1)]
    assert all(g.types == ("fp32", "bf16", "int8") and g.memory for g in agent.gauges())
    assert all(found.of(cell) for cell in cells)
    assert len(agent.asked) == 3


def test_what_was_not_planned_is_asked_for_when_it_comes_without_its_memory() -> None:
    agent = Agent()
    found = ceilings(agent)
    for precision in ("fp32", "bf16", "bf16", "fp32"):
        assert found.of(make.cell(precision=precision)) is not None
    assert [(g.types, g.memory) for g in agent.gauges()] == [(("fp32",), True), (("bf16",), False)]


@pytest.mark.parametrize(
    ("precision", "fastest"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp32"),
                               ("amp", "bf16"), ("int8", "int8")],
)  # fmt: skip
def test_the_fastest_type_that_may_be_computed_in_is_the_peak(precision: Any, fastest: str) -> None:
    """fp16 is emulated by most CPUs, and runtimes compute in fp32 there."""
    found = ceilings(Agent()).of(make.cell(precision=precision, replicas=2))
    assert found == Ceiling(
        work=WORK, flops_per_s=RATES[fastest], bytes_per_s=40e9, precision=fastest, cache_bytes=1e6
    )


def test_of_gpus_one_is_measured() -> None:
    agent = Agent()
    found = ceilings(agent).of(make.cell(device="cuda", cores=0, replicas=4, replicas_per_device=2))
    assert found is not None
    assert found.flops_per_s == 2 * RATES["fp32"]
    assert found.bytes_per_s == 2 * 40e9
    assert agent.gauges() == [Gauge("cuda", (), ("fp32",), memory=True)]


@pytest.mark.parametrize("backend", ["null", "fake"])
def test_nothing_is_asked_for_a_backend_that_has_none(backend: str) -> None:
    agent = Agent()
    record = Record(cell=make.cell(backend=backend), repeat=0, status="ok")
    assert ceilings(agent).fill(record) == record
    assert not agent.asked


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"Gauge": Failure("crash", "a worker died")}, "a worker died"),
        ({"Count": Failure("input", "products in Einsum are not counted")}, "Einsum"),
        ({"Gauge": GpubenchError("the agent did not start")}, "did not start"),
        ({"Count": Waiting("start", [])}, "unexpected answer: Waiting"),
        ({"Gauge": Gauged({}, 40e9, 0.0)}, "no product of bf16 or fp32 could be computed on cpu"),
    ],
)
def test_no_failure_ends_a_run_and_none_is_asked_for_again(
    answers: dict[str, Reply | Exception], why: str
) -> None:
    agent = Agent(**answers)
    found = ceilings(agent)
    cells = [make.cell(precision="bf16", batch_size=b) for b in (1, 2, 4)]
    found.measure(cells, Silent())
    asked = len(agent.asked)
    for cell in cells:
        assert found.of(cell) is None
        record = found.fill(Record(cell=cell, repeat=0, status="ok"))
        assert why in record.facts[NO_CEILING]
        assert record.ceiling is None
    assert len(agent.asked) == asked <= 2


def test_a_precision_without_a_peak_says_so() -> None:
    agent = Agent()
    record = ceilings(agent).fill(Record(cell=make.cell(precision="fp4"), repeat=0, status="ok"))
    assert record.facts[NO_CEILING] == "no peak of fp4 is measured on cpu"


def test_a_run_measures_and_records_it(
    tmp_path: Path, cache_dir: Path, write_suite: Callable[..., Path]
) -> None:
    """A real agent, real workers, a real runtime."""
    suite = write_suite(backend='["onnxruntime"]', batch_size="[1]", replicas="[1]")
    made = setup.session(str(suite), {"repeats": 1}, cache_dir, tmp_path / "run", False, ())
    file = driver.run(made, Silent())
    assert file.records
    for record in file.records:
        assert record.status == "ok", record.reason
        assert record.ceiling is not None, record.facts
        # 3 x 16 x 16 pixels are pooled to 3 x 8 x 8, which a matrix turns into 10 logits
        ends = 3 * 16 * 16 + 10
        moved = 3 * 16 * 16 + 192 + 192 + 10
        assert record.ceiling.work == Work(
            flops=2 * 192 * 10, weights=1920, activations=moved, ends=ends
        )
        assert record.ceiling.precision == "fp32"
        assert record.ceiling.flops_per_s > 1e8
        assert record.ceiling.bytes_per_s > 1e8
