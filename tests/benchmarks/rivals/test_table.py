"""The table of the rules: counts, misses and what was undecided come from the commits alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.rivals import measure, table


def row(kind: str, alarm: bool | None, number: int = 0, **more: Any) -> table.Row:
    answers = {rule: {"alarm": False, "seconds": 4.0} for rule in table.RULES}
    slower = 1 + (table.LAYERS[kind] - 100) / 200
    answers[table.RULES[1]] |= {"min": [0.001, table.LAYERS[kind] / 1e5]}
    answers[table.HYPERFINE] |= {"times": [[1.0, 1.0, 9.0], [slower] * 3]}
    answers[table.GATE] |= {
        "alarm": alarm, "seconds": 7.0 + number, "pairs": 9, "pair_sd": None,
        "verdict": {True: "REGRESSED", False: "EQUIVALENT", None: "INCONCLUSIVE"}[alarm],
    }  # fmt: skip
    return {"condition": "reserved", "kind": kind, "number": number, "seed": 0, "load": 3.0,
            "rules": answers} | more  # fmt: skip


def test_alarms_misses_and_undecided_are_counted_apart() -> None:
    text = table.text(
        [
            row(table.DOCS, True), row(table.DOCS, False, 1), row(table.DOCS, None, 2),
            row("+5 %", True, 3, cpu="x86"), row("+5 %", None, 4),
            row(table.DOCS, True, condition="shared"), row(table.DOCS, False, 5, load=9.0),
        ]
    )  # fmt: skip
    _, heavy, reserved, shared = text.split("\n## ")[1:5]
    assert "a load average above 8\n\n1 commits" in heavy
    assert "| gpubench ab | 0 of 1 | 12 (12) |" in heavy
    assert "5 commits; load average 3 (median); CPU: not noted (4), x86 (1)." in reserved
    assert "| gpubench ab | 1 of 3, 1 undecided | 1 of 2, 1 undecided | 9 (11) |" in reserved
    assert "| hyperfine | 0 of 3 | 0 of 2 | 4 (4) |" in reserved
    assert "gpubench ab, +5 %: 1 REGRESSED, 1 INCONCLUSIVE; 9 pairs (medians)." in reserved
    assert "| gpubench ab | 1 of 1 | 7 (7) |" in shared
    assert "reserved, gpubench ab: 1 false alarms in 4, so the rate is at most 80.6%" in text
    assert "interval); found: 1 of 2, 1 undecided of +5 %" in text
    assert "reserved, not yet measured: 96 x documentation, 30 x +3 %, 28 x +5 %" in text


def test_a_change_is_shown_with_what_it_costs_the_network_and_the_program() -> None:
    text = table.text([row(table.DOCS, False), row("+10 %", True, 1)])
    assert "| +10 % | 110 | +10.0% (1) | +5.0% (1) |" in text
    assert "| +200 % | 300 |  |  |" in text


def test_a_plan_has_all_commits_in_one_random_order_a_seed() -> None:
    numbers, kinds = zip(*measure.plan("reserved", 0), strict=True)
    assert numbers == tuple(range(220))
    assert {kind: kinds.count(kind) for kind in table.LAYERS} == table.COUNTS
    assert kinds != tuple(sorted(kinds))
    assert measure.plan("reserved", 0) != measure.plan("reserved", 1)


def test_a_head_is_the_base_with_more_layers_or_a_line_of_documentation(tmp_path: Path) -> None:
    base, head = measure.repository(tmp_path)
    model = (base / "model.onnx").read_bytes()
    measure.commit(head, 1, "+3 %")
    assert "LAYERS = 103" in (head / "network.py").read_text()
    assert (head / "model.onnx").read_bytes() != model
    measure.commit(head, 2, table.DOCS)
    assert (head / "model.onnx").read_bytes() == model
    assert measure.git(head, "diff", "--stat", "main", "--name-only").split() == ["README.md"]
