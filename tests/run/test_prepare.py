"""Preparing cells: what ends a run, and what fails one cell only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpubench.errors import CalibrationError, GpubenchError, InputError, Unsupported
from gpubench.run import driver, prepare, record_builder, setup
from gpubench.run.agent import worker
from gpubench.run.agent.client import OnProgress
from gpubench.run.agent.messages import BuildReference, Preloaded, Prepared, Reply, Request
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
