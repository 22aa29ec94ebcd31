"""Preparing cells: what ends a run, and what fails one cell only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from gpubench.errors import (
    CalibrationError,
    CellFailed,
    ChangedError,
    GpubenchError,
    InputError,
    Unsupported,
)
from gpubench.run import driver, prepare, record_builder, setup
from gpubench.run.agent import worker
from gpubench.run.agent.client import OnProgress
from gpubench.run.agent.messages import BuildReference, Preloaded, Prepare, Prepared, Reply, Request
from gpubench.run.watcher import Silent


class Agent:
    """Has every reference, and no artefact, because of ``error``."""

    def __init__(self, error: GpubenchError) -> None:
        self.error = error

    def start(self) -> Preloaded:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def ask(self, request: Request, progress: OnProgress | None = None) -> Reply:
        if isinstance(request, BuildReference):
            return Prepared("there", {})
        return worker.failure(self.error)


def test_bad_input_leaves_no_run_behind(
    tmp_path: Path, cache_dir: Path, write_suite: Callable[..., Path]
) -> None:
    suite, out, empty = write_suite(batch_size="[1]"), tmp_path / "run", tmp_path / "empty"
    empty.mkdir()
    bad = setup.session(str(suite), {"images": str(empty)}, cache_dir, out, False, ())
    with pytest.raises(InputError, match="found 0 usable"):
        driver.run(bad, Silent())
    good = setup.session(str(suite), {}, cache_dir, out, False, ())
    assert driver.run(good, Silent()).records


def test_pictures_that_cannot_calibrate_end_the_run_and_other_input_the_cell(
    tmp_path: Path, cache_dir: Path, write_suite: Callable[..., Path]
) -> None:
    made = setup.session(str(write_suite()), {}, cache_dir, tmp_path / "run", False, ())

    def prepared(error: GpubenchError) -> list[prepare.Ready | prepare.NotReady]:
        agent = Agent(error)
        found = prepare.prepare(agent, made.plan.cells, made.plan, made.backends, {}, Silent())
        return list(found)

    for cell in prepared(CellFailed("timeout", "no answer within 6 s (after 'start')")):
        assert isinstance(cell, prepare.NotReady)
        record = record_builder.failed(cell.cell, 0, cell.why, ())
        assert record.reason == "preparing: no answer within 6 s (after 'start')"
        assert record.remedy.startswith("raise policy.prepare_timeout_s")
    for cell in prepared(InputError("a batch that the file cannot have")):
        assert isinstance(cell, prepare.NotReady)
        record = record_builder.failed(cell.cell, 0, cell.why, ())
        assert (record.status, record.kind) == ("failed", "error")
    for cell in prepared(Unsupported("its file is for batches of 1")):
        assert isinstance(cell, prepare.NotReady)
        record = record_builder.failed(cell.cell, 0, cell.why, ())
        assert (record.status, record.reason) == ("unsupported", "its file is for batches of 1")
    with pytest.raises(InputError, match="too few"):
        prepared(CalibrationError("too few"))


def test_each_input_has_a_reference_and_an_artefact_of_its_own(
    tmp_path: Path, cache_dir: Path, write_suite: Callable[..., Path]
) -> None:
    suite = write_suite(backend='["null"]', input='["float32", "uint8"]')
    made = setup.session(str(suite), {}, cache_dir, tmp_path / "run", False, ())
    given = [cell.input for cell in made.plan.cells]
    assert sorted(given) == ["float32"] * 2 + ["uint8"] * 2
    one = {"preprocessing": "a"}, {"preprocessing": "b"}  # which is no change of it
    agent = Holding({}, [{}] * 4)
    found = prepare.prepare(agent, made.plan.cells, made.plan, made.backends, {}, Silent())
    assert all(isinstance(each, prepare.Ready) for each in found)
    references = [r.input for r in agent.asked if isinstance(r, BuildReference)]
    assert sorted(references) == ["float32", "uint8"]
    assert sum(isinstance(r, Prepare) for r in agent.asked) == 4  # of two batch sizes
    held = prepare.Held()
    for dtype, contents in zip(("float32", "uint8"), one, strict=True):
        held.check(replace(made.plan.cells[0], input=dtype), contents)


class Holding(Agent):
    """Whose n-th answer to a reference and n-th to an artefact tell these contents."""

    def __init__(self, reference: dict[str, str], artefacts: list[dict[str, str]]) -> None:
        self.reference, self.artefacts = reference, artefacts
        self.asked: list[Request] = []

    def ask(self, request: Request, progress: OnProgress | None = None) -> Reply:
        self.asked.append(request)
        if isinstance(request, BuildReference):
            return Prepared("reference", {}, self.reference)
        return Prepared("artefact", {}, self.artefacts.pop(0))


@pytest.mark.parametrize(
    ("earlier", "reference", "second", "said"),
    [
        ({}, {"model": "a", "images": "b"}, {"model": "a"}, ""),
        ({"model": "a", "images": "b"}, {"model": "a", "images": "b"}, {"model": "a"}, ""),
        ({}, {"model": "a"}, {"model": "c"}, "model"),
        ({"model": "c"}, {"model": "a"}, {"model": "a"}, "model"),
        ({"images": "c"}, {"images": "b"}, {}, "images"),
        ({"preprocessing": "c"}, {"preprocessing": "b"}, {}, "preprocessing of model"),
        ({"calibration": "c"}, {}, {"calibration": "d"}, "calibration images"),
    ],
)
def test_what_the_paths_hold_must_stay(
    tmp_path: Path,
    cache_dir: Path,
    write_suite: Callable[..., Path],
    earlier: dict[str, str],
    reference: dict[str, str],
    second: dict[str, str],
    said: str,
) -> None:
    made = setup.session(str(write_suite()), {}, cache_dir, tmp_path / "run", False, ())
    agent, held = Holding(reference, [{}, second]), prepare.Held()
    held.check(made.plan.cells[1], earlier)
    found = prepare.prepare(
        agent, made.plan.cells, made.plan, made.backends, {}, Silent(), held, limit_s=7.0
    )
    if said:
        with pytest.raises(ChangedError, match=f"^{said} '.*contents have changed"):
            list(found)
        return
    assert [one.contents for one in found if isinstance(one, prepare.Ready)] == [
        reference,
        reference | second,
    ]
    limits = [
        r.policy.prepare_timeout_s if isinstance(r, BuildReference) else r.timeout_s
        for r in agent.asked
        if isinstance(r, BuildReference | Prepare)
    ]
    assert limits == [7.0] * 3


def test_a_reference_that_was_not_there_in_time_is_not_waited_for_again(
    tmp_path: Path, cache_dir: Path, write_suite: Callable[..., Path]
) -> None:
    """By the other arm of an A/B, or by the other cells of a search."""
    asked: list[Request] = []

    class Slow(Agent):
        def ask(self, request: Request, progress: OnProgress | None = None) -> Reply:
            asked.append(request)
            return worker.failure(self.error)

    made = setup.session(str(write_suite()), {}, cache_dir, tmp_path / "run", False, ())
    agent, held = Slow(CellFailed("timeout", "no answer within 7 s")), prepare.Held()
    for _ in range(2):
        for one in prepare.prepare(
            agent, made.plan.cells, made.plan, made.backends, {}, Silent(), held
        ):
            assert isinstance(one, prepare.NotReady)
            assert "no answer within 7 s" in getattr(one.why, "reason", "")
    assert len(asked) == 1
