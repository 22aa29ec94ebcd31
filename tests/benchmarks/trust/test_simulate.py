"""The simulation runs, repeats itself and can fail; its full run shows that the promises hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.suite.types import Rule
from tests.benchmarks.trust import (
    answers,
    evidence,
    gates,
    processes,
    show,
    simulate,
    virtual_ab,
)
from tests.benchmarks.trust.evidence import Case, Experiment, Row, at_most, bounds


@pytest.mark.slow
def test_quick_runs_everything_and_writes_three_files(tmp_path: Path) -> None:
    names = list(simulate.EXPERIMENTS)
    simulate.write(names, simulate.SEED, True, tmp_path, 2)
    text = (tmp_path / "simulation.md").read_text()
    page = (tmp_path / "simulation.html").read_text()
    found = json.loads((tmp_path / "simulation.json").read_bytes())
    assert [e["name"] for e in found["experiments"]] == names
    for experiment in simulate.ALL:
        assert f"## {experiment.title}" in text
        for case in experiment.cases:
            assert any(case in row["case"] for e in found["experiments"] for row in e["rows"]), case
    assert page.count("<table>") == len(names)
    assert "http" not in page, "it must be self-contained"


def test_the_number_of_workers_and_the_run_change_no_byte(tmp_path: Path) -> None:
    for place, workers in (("one", 1), ("two", 2)):
        simulate.write(["short-turns", "determinism"], 3, True, tmp_path / place, workers)
    for name in ("simulation.md", "simulation.html", "simulation.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    simulate.write(["short-turns", "determinism"], 4, True, tmp_path / "other", 1)
    assert (tmp_path / "other" / "simulation.json").read_bytes() != (
        tmp_path / "one" / "simulation.json"
    ).read_bytes()


def test_what_the_output_holds_of_other_experiments_stays(tmp_path: Path) -> None:
    simulate.write(["determinism", "short-turns"], 3, True, tmp_path / "both", 1)
    for name in ("short-turns", "determinism"):
        simulate.write([name], 3, True, tmp_path / "one by one", 1)
    for name in ("simulation.md", "simulation.json"):
        both = (tmp_path / "both" / name).read_bytes()
        assert (tmp_path / "one by one" / name).read_bytes() == both
    simulate.write(["determinism"], 4, True, tmp_path / "both", 1)
    found = json.loads((tmp_path / "both" / "simulation.json").read_bytes())
    assert [e["name"] for e in found["experiments"]] == ["determinism"], "of another seed"


def test_a_promise_that_is_not_kept_is_shown_as_missed() -> None:
    experiment = Experiment(
        name="x", title="Title <b>", about="about 5%", rows=lambda case, n: [],
        cases={"c": Case(lambda rng, n: {}, 1, 1, 1)},
    )  # fmt: skip
    rows = [
        Row(case="good | one", values={"n": "1%"}, reach="2", ok=True),
        Row(case="bad", values={"n": "<3>"}, reach="2", ok=False),
    ]
    results = [(experiment, rows)]
    assert show.missed(results) == ["x: bad"]
    text = show.markdown(results, "How")
    assert "| good \\| one | 1 % | 2 | kept |" in text
    assert "| bad | <3> | 2 | **MISSED** |" in text
    assert "**1 of 2 promises kept; missed: x: bad.**" in text
    page = show.html(results, "How")
    assert "Title &lt;b&gt;" in page
    assert '<td>&lt;3&gt;</td><td>2</td><td class="missed">MISSED</td>' in page


def test_the_bounds_of_the_promises() -> None:
    """0 of 299, 1 of 473 and 2 of 628 show 1 %; 0 of 59, 1 of 93 and 4 of 181 show 5 %."""
    for hits, n, most in ((0, 299, 0.01), (1, 473, 0.01), (2, 628, 0.01), (0, 59, 0.05),
                          (1, 93, 0.05), (4, 181, 0.05)):  # fmt: skip
        assert at_most(hits, n) <= most < at_most(hits, n - 1)
    assert bounds(0, 10)[0] == 0.0
    assert bounds(10, 10)[1] == 1.0
    assert bounds(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)


@pytest.mark.parametrize("name", processes.STATIONARY)
def test_true_medians_are_true(name: str) -> None:
    draw, truth, _ = processes.STATIONARY[name]
    drawn = draw(np.random.default_rng(0), 4000, 200)[:, 100:]
    assert float(np.median(drawn)) == pytest.approx(truth(), abs=2.5e-3)


def test_a_turn_is_where_its_order_puts_it() -> None:
    """An antagonist in the 1st and 4th turn slows the baseline of ABBA and the other of BAAB."""
    for order, sign in (("ABBA", -1), ("BAAB", 1), ("ABAB", 0)):
        machine = virtual_ab.Machine(
            virtual_ab.Locked((0, 3)), virtual_ab.launched(0.0), turns=2, orders=(order,)
        )
        pairs, costs = virtual_ab.measure(np.random.default_rng(1), machine, np.zeros(50))
        assert np.mean([p.d for p in pairs]) == pytest.approx(sign * 0.1, abs=0.02)
        assert costs.shape == (2, 50, machine.samples)


def test_what_happens_for_seconds_is_shared_by_fine_turns() -> None:
    when = virtual_ab.PAIR_S * np.arange(200.0)[None]
    coarse, fine = (
        virtual_ab.draw(np.random.default_rng(3), virtual_ab.Machine(virtual_ab.bursts, turns=n),
                        when).d.std() for n in (2, 12)
    )  # fmt: skip
    assert fine < coarse / 2


def test_no_pair_begins_after_the_budget_but_every_cell_has_one() -> None:
    rng = np.random.default_rng(4)
    drawn = virtual_ab.draw(rng, virtual_ab.Machine(), np.zeros((1, 200)))
    effects = dict.fromkeys(gates.KEYS, 0.0)
    for budget_s, least, most in ((1.0, 10, 10), (200.0, 44, 44), (9e9, 70, 200)):
        cells, _ = virtual_ab.timed(rng, drawn, 0, effects, budget_s, Rule())
        assert least <= sum(map(len, cells.values())) <= most


def test_an_effect_reaches_the_pairs() -> None:
    effect = math.log1p(0.1)
    fresh = virtual_ab.on(virtual_ab.Machine(), np.random.default_rng(2), {"a": effect, "b": 0.0})
    _, said = virtual_ab.suite(["a", "b"], fresh, Rule())
    assert (said["a"].verdict, said["b"].verdict) == ("REGRESSED", "EQUIVALENT")


def test_the_table_can_miss() -> None:
    """A machine that is locked to the order and an order that is not drawn: every suite alarms."""
    machine = virtual_ab.Machine(virtual_ab.Locked((1, 3)), turns=2, orders=("ABAB",))
    counts = gates.suites(machine, gates.AA_TRUE)(np.random.default_rng(0), 2)
    assert counts["alarms"] == 2
    (row,) = gates.AA.rows("iid", counts)
    assert row.ok is False


def test_what_is_called_detectable_must_be_found_beyond_chance() -> None:
    """575 of 600 is above 95 %, but it does not show that the true share is."""
    for found, ok in ((575, False), (585, True)):
        (row,) = gates.DETECTABLE.rows("sd", {"suites": 600, "effect": 30.0, "found": found})
        assert row.ok is ok


def test_chunks_add_up() -> None:
    ((name, case), *_) = gates.DETERMINISM.cases.items()
    one = case.repeat(np.random.default_rng(0), 1)["suites"]
    small = Case(case.repeat, 5, 2, 1)
    split = replace(gates.DETERMINISM, cases={name: small})
    counts = evidence.run([split], 1, False, 1)["determinism"]
    assert counts[name]["suites"] == 5 * one  # in chunks of 2, 2 and 1


def test_answers_alarm_at_the_margin_hardly_ever_and_planted_errors_are_found() -> None:
    rng = np.random.default_rng(5)
    edge = answers.suites(1000, 0.02, answers.MARGIN / answers.RIGHT)(rng, 100)
    assert edge["alarms"] == 0
    found = answers.suites(10_000, 0.01, 0.02 / answers.RIGHT)(rng, 10)
    assert found["REGRESSED"] >= 95
    assert answers.suites(10_000, 0.002, 0.0)(rng, 10)["EQUIVALENT"] >= 95


def test_all_metrics_together_alarm_no_more_than_one_alone() -> None:
    counts = answers.family(1.0, 0.01)(np.random.default_rng(6), 12)
    assert counts["suites"] == 12
    assert counts["alarms"] <= 1
    assert answers.family(4.0, 0.01)(np.random.default_rng(6), 1)["others"] == 1
