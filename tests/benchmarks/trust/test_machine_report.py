"""The report on real suites copes with cells that gave nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.benchmarks.trust import machine, machine_report


def suite(kind: str, n: int) -> dict[str, Any]:
    values = [1.0 + 0.01 * (at % 3) for at in range(n)]
    some = bool(n)
    cell = {
        "label": "x", "verdict": "EQUIVALENT" if some else "MISSING", "code": "", "pairs": n,
        "ratio": 1.0 if some else None, "low": 0.99 if some else None,
        "high": 1.06 if some else None, "pair_sd": 0.01 if some else None,
        "baseline_ms": values, "candidate_ms": values,
    }  # fmt: skip
    return {"condition": "quiet", "kind": kind, "seed": 1, "seconds": 3.0, "cells": [cell],
            "machine": "CPU one, 2 cores", "beside": "a neighbour"}  # fmt: skip


def test_cells_without_a_pair_are_said_and_not_divided_by() -> None:
    text = machine_report.text([suite("same", 8), suite("slowed", 0)])
    assert "CPU one, 2 cores. Made by" in text
    assert "| quiet | 1.00 | 1 EQUIVALENT | 1 of 1: " in text
    assert "| quiet | 1.05 | 1 MISSING | no interval |" in text
    assert "- quiet: a neighbour.\n" in text
    assert "quiet: 1 of 1 suites slowed by 5 % missed" in text


def test_a_cell_that_was_missed_is_said_though_its_suite_was_found() -> None:
    found = suite("slowed", 8)
    cell = found["cells"][0]
    found["cells"] = [cell | {"verdict": "REGRESSED"}, cell | {"verdict": "INCONCLUSIVE"}]
    text = machine_report.text([found])
    assert "0 of 1 suites slowed by 5 % missed (no cell REGRESSED), and 1 of their 2 cells" in text


def test_suites_that_are_done_are_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "quiet-0.jsonl"
    assert machine.done(path) == set()
    whole = json.dumps(suite("same", 8)) + "\n"
    path.write_text(whole + whole[:20])
    assert machine.done(path) == {("same", 1)}
    assert path.read_text() == whole
