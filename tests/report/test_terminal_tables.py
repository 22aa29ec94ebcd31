"""Tables of the terminal in windows of any width."""

import re

import pytest

from gpubench.analysis.scaling.diagnosis import diagnose
from gpubench.analysis.summary import summarise
from gpubench.analysis.tables.run import of_cells
from gpubench.records.record import RecordFile
from gpubench.report import formatting, terminal
from tests.report import make, make_pipelines
from tests.report.test_report import plain


@pytest.fixture(scope="module")
def run() -> RecordFile:
    return make.realistic(samples=40)


@pytest.mark.parametrize("width", [80, 100, 140, 250])
def test_the_table_of_a_run_cuts_off_and_breaks_nothing(run, width):
    made = plain(terminal.summary([run]), width)
    assert "\u2026" not in made
    lines = made.splitlines()
    assert max(map(len, lines)) <= width
    for s in summarise([run]):
        if s.timed and s.cell.scenario == "throughput":
            rate = formatting.compact(s.throughput, "images/s").partition(" ±")[0]
            assert any(rate in x and s.cell.backend in x for x in lines)
    assert made.count("failed: parity") >= 8
    assert "1 of 3 repeats failed" in made


@pytest.mark.parametrize(("width", "below"), [(80, 8), (250, 0)])
def test_answers_that_rows_share_are_said_once(run, width, below):
    made = " ".join(plain(terminal.summary([run]), width).split())
    assert made.count("100.0 % / 93.8 %") == 1
    legend = "match / accuracy (top-1 with the reference's answers / with labels): "
    assert f"{legend}100.0 % / 93.8 % where nothing else is said" in made
    assert made.count("41.0 % /") == 8
    assert made.count("match / accuracy 41.0 %") == below  # each below its row
    alike = make.run([make.cell(), make.cell(batch_size=8)], samples=20)
    made = " ".join(plain(terminal.summary([alike]), 60).split())
    assert legend not in made  # the answer says it
    assert re.search(r"accuracy Yes: all 2 cells match .* Accuracy 93.8 % \[", made)


def test_what_most_rows_share_of_their_intervals_is_said_once(run):
    cells = [make.cell(batch_size=n) for n in (1, 2, 4, 8)]
    made = plain(terminal.summary([make.run(cells, samples=20)]), 120)
    shares = re.findall(r"±([\d.]+%) of (p50|images/s)", made)
    assert [name for _, name in shares] == ["p50", "images/s"]
    assert made.count("±") == 1 + len(shares)  # no row repeats it


def test_rows_stand_beside_what_they_compete_with_and_say_no_constant():
    cells = [
        make.cell(backend=b, batch_size=n) for n in (1, 8) for b in ("torch-eager", "openvino")
    ]
    made = plain(terminal.summary([make.run(cells, samples=20)]), 80).splitlines()
    at = next(n for n, line in enumerate(made) if line.startswith("batch 1"))
    assert [line.split()[0] for line in made[at : at + 6]] == [
        "batch", *(made[at + n].split()[0] for n in (1, 2)),
        "batch", *(made[at + n].split()[0] for n in (4, 5)),
    ]  # fmt: skip
    assert {line.split()[0] for line in made[at + 1 : at + 3]} == {"torch-eager", "openvino"}
    assert "fp32" in made[0]
    assert not any("fp32" in line for line in made[at : at + 6])
    p50s = [float(line.split()[1]) for line in made[at + 1 : at + 3]]
    assert p50s == sorted(p50s)
    alone = plain(terminal.summary([make.run([make.cell(batch_size=n) for n in (1, 8)])]), 80)
    assert "speed-up" not in alone  # nothing to be compared with
    assert "torch-eager, batch 8" in alone


@pytest.mark.parametrize("width", [80, 120, 400])
@pytest.mark.parametrize("make_run", [make.realistic, make_pipelines.run])
def test_wide_tables_go_on_below_and_lose_no_number(make_run, width):
    summaries = summarise([make_run()])
    for table in of_cells(summaries, diagnose(summaries)):
        made = plain(terminal.grid(table), width)
        assert "\u2026" not in made, table.title
        assert max(map(len, made.splitlines())) <= width
        numbers = {
            formatting.compact(value, column.unit)
            for row in table.rows
            for value, column in zip(row, table.columns, strict=True)
            if formatting.is_number(column)
        }
        assert [n for n in numbers if n not in made] == []


def test_every_part_of_a_table_says_which_row_it_is(run):
    table = of_cells(summarise([run]), [])[0]
    made = plain(terminal.grid(table), 80)
    heads = [line for line in made.splitlines() if line.lstrip().startswith("backend")]
    assert len(heads) > 2
    for head in heads:
        assert re.match(r" backend +precision +batch +replicas  ", head)
    assert made.count(table.title) == 1
