"""How reports tell why scaling falls short, which batch still worked, and what machines did it."""

from __future__ import annotations

import csv
import io
import json

import pytest
from msgspec.structs import replace

from gpubench import report
from gpubench.analysis.scaling.diagnosis import diagnose
from gpubench.analysis.summary import problems, summarise
from gpubench.records import validation
from gpubench.records.record import Record, RecordFile
from gpubench.report import formatting, terminal
from gpubench.report.charts import overview
from gpubench.report.exports import junit
from gpubench.report.html import page
from gpubench.report.sections import headline
from gpubench.report.sections import scaling as sections_scaling
from tests.analysis.scaled import cell, changed, file, records
from tests.report import make
from tests.report.test_report import HOSTILE, Tags, plain

SLOW = [100, 100, 100, 70]


@pytest.fixture(scope="module")
def run() -> RecordFile:
    """A straggler among four replicas; two replicas that scale."""
    made = [records(cell(n), rates) for n, rates in ((1, [100]), (2, [99, 99]), (4, SLOW))]
    return file(*made)


def test_the_scaling_table_names_what_limits(run):
    table = next(t for t in make.tables([run]) if t.title == "Scaling over replicas")
    at = [c.name for c in table.columns].index("limited by")
    assert [row[at] for row in table.rows] == ["none shown", "straggler 100 %"]
    assert any(note.startswith("A shortfall is shown where") for note in table.notes)


@pytest.mark.parametrize("kind", ["text", "md", "html"])
def test_reports_show_the_cause_its_evidence_and_what_to_do(run, kind):
    made = " ".join(report.render([run], kind).replace("\\", "").split())
    assert "torch-eager fp32 b8 x4 throughput (weak scaling): 92.5" in made
    assert "replica 3 (cpu:3) runs 30.0 % below the mean of the others, in all 3 repeats" in made
    assert "look at that device" in made
    again = kind != "html"  # among the answers
    assert made.count("(weak scaling)") == 1 + again  # not of the cell that scales


def test_the_end_of_a_run_tells_a_lone_shortfall_in_full(run):
    (line,) = sections_scaling.lines(diagnose(summarise([run])))
    assert " x4 throughput (weak scaling): 92.5" in line
    assert "of the ideal: straggler 100 %; replica 3 (cpu:3) runs 30.0 % below" in line
    assert "scaling  " in plain(terminal.summary([run]), 400)


@pytest.mark.parametrize("busy", [False, True])
def test_shortfalls_of_one_cause_are_one_line(busy):
    made = []
    for n in range(1, 7):
        made += [records(cell(batch_size=3**n), [100])]
        made += [records(cell(2, batch_size=3**n), [70 + n, 80 + n])]
    if busy:
        made = [[replace(r, flags=["CPU-WITHHELD"]) for r in one] for one in made]
    found = diagnose(summarise([file(*made)]))
    (line,) = sections_scaling.lines(found)
    assert "2 replicas reach 76 to 81 % of the ideal in 6 cells" in line
    assert ("busy machine" in line) == ("no finding about scaling" in line) == busy
    assert line.count("by exclusion: all are slower") == 1
    assert (sections_scaling.BUSY in sections_scaling.note(found)) == busy


def test_numbers_of_one_sentence_become_ranges():
    said = ["used 52.5 % of 4 cores", "used 1,044.8 % of 4 cores"]
    assert sections_scaling._ranged(said) == "used 52.5 to 1,044.8 % of 4 cores"
    assert sections_scaling._ranged(["a 1", "b 2"]) == "a 1, in the worst"


def test_csv_and_json_have_the_numbers(run):
    rows = list(csv.DictReader(io.StringIO(report.render([run], "csv"))))
    (limit,) = [r for r in rows if r["metric"] == "weak limited by straggler"]
    assert float(limit["value"]) == pytest.approx(1)
    assert "replica 3 (cpu:3)" in limit["note"]
    assert len({(r["run"], r["cell"], r["metric"]) for r in rows}) == len(rows)
    well, short = json.loads(report.render([run], "json"))["scaling"]
    assert well["causes"] == []
    assert well["why_not"] == "99.0 % is within 2 % of the ideal"
    assert short["shown"]
    assert short["causes"][0]["evidence"]["replicas"] == [3]


def test_hostile_devices_are_neutralised_in_the_evidence():
    evil = changed(records(cell(4), SLOW), lambda x, r: replace(x, device=HOSTILE))
    made = file(records(cell(), [100]), evil)
    tags = Tags(report.render([made], "html")).seen
    assert not [t for t, a in tags if t == "img" or "onerror" in a]
    markdown = report.render([made], "md")
    assert "<img" not in markdown
    assert "[x](y)" not in markdown


# ------------------------------------------------------------------------------ shared jobs


def test_static_stands_beside_dynamic():
    cells = [cell(2, dispatch=d) for d in ("static", "dynamic")]
    made = [records(c, [100, 100], claim_ns=44_000) for c in cells]
    tables = {t.title: t for t in make.tables([file(records(cell(), [100]), *made)])}
    table = tables["One job, shared by replicas"]
    names = [c.name for c in table.columns]
    rows = [dict(zip(names, row, strict=True)) for row in table.rows]
    assert [r["dispatch"] for r in rows] == ["static", "dynamic"]
    assert rows[0]["over static"].why == "static"
    assert rows[1]["over static"].value == pytest.approx(1)
    batches = sum(len(x.durations_ns) * x.iterations for x in made[0][0].replicas)
    assert rows[0]["overhead per batch"] == pytest.approx(88_000 / batches)


def test_charts_keep_shared_devices_and_jobs_apart():
    few = [cell(), cell(2), cell(2, replicas_per_device=2), cell(2, dispatch="dynamic")]
    assert not overview.build(summarise([file(*(records(c, [100] * c.replicas) for c in few))]))[
        "charts"
    ]  # two numbers of replicas: the table says it
    cells = [*few, cell(4)]
    drawn = overview.build(summarise([file(*(records(c, [100] * c.replicas) for c in cells))]))
    assert [s["name"] for s in drawn["series"]] == [
        f"torch-eager fp32{words}" for words in ("", " 2 per device", " dynamic")]  # fmt: skip
    (scaling,) = [c for c in drawn["charts"] if c["id"] == "scaling"]
    points = {(p["series"], p["x"]): p["y"] for p in scaling["points"]}
    assert points == {
        ("torch-eager fp32", 1): 1, ("torch-eager fp32", 2): pytest.approx(2),
        ("torch-eager fp32", 4): pytest.approx(4), ("torch-eager fp32 dynamic", 1): 1,
        ("torch-eager fp32 dynamic", 2): pytest.approx(2),
        ("torch-eager fp32 2 per device", 1): pytest.approx(2),
    }  # fmt: skip
    assert scaling["spec"]["encoding"]["x"]["title"] == "devices"


def test_cells_are_told_apart_in_words():
    s = summarise([file(records(cell(4, replicas_per_device=2, dispatch="static"), [1] * 4))])[0]
    assert headline.where(s) == "torch-eager fp32, batch 8, 4 replicas, 2 per device, static"


# ------------------------------------------------------------------------------ out of memory


def dead(batch: int, **changes: object) -> list[Record]:
    at = cell(batch_size=batch, **changes)
    return [Record(cell=at, repeat=0, status="failed", kind="out-of-memory",
                   reason="9 of 8 GiB", remedy="use a larger GPU")]  # fmt: skip


def remedies(*measured: list[Record]) -> dict[int, str]:
    found = problems(summarise([file(*measured)]))
    return {p.summary.cell.batch_size: p.remedy for p in found}


def test_out_of_memory_names_the_largest_batch_that_worked():
    ok = [records(cell(batch_size=n), [100]) for n in (1, 16, 4)]
    other = records(cell(batch_size=64, precision="bf16"), [100])
    found = remedies(*ok, other, dead(32), dead(128))
    words = "use a larger GPU; largest batch size that worked: 16"
    assert found == {32: words, 128: words}
    none = remedies(other, dead(32), dead(8))
    assert none[8] == "use a larger GPU; no other batch size worked (tried: 32)"
    assert remedies(other, dead(32))[32] == "use a larger GPU; no other batch size was tried"


def test_a_batch_that_ran_out_of_memory_once_did_not_work():
    once = [*records(cell(batch_size=16), [100]), *(replace(r, repeat=9) for r in dead(16))]
    found = remedies(once, records(cell(batch_size=4), [100]), dead(32))
    assert set(found.values()) == {"use a larger GPU; largest batch size that worked: 4"}


@pytest.mark.parametrize("kind", report.FORMATS)
def test_every_report_says_which_batch_worked(kind, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # so that no table breaks a line
    made = report.render([file(records(cell(batch_size=4), [100]), dead(32))], kind)
    assert "largest batch size that worked: 4" in made
    assert b"largest batch size that worked: 4" in junit.render(
        [file(records(cell(batch_size=4), [100]), dead(32))], None
    )


def test_the_end_of_a_run_says_which_batch_worked():
    made = plain(terminal.summary([file(records(cell(batch_size=4), [100]), dead(32))]), 300)
    assert "largest batch size that worked: 4" in made


# ------------------------------------------------------------------------------ invalidated


def test_shortfalls_of_several_runs_name_theirs(run):
    heads = [head for head, _ in sections_scaling.shown(diagnose(summarise([run, run])))]
    assert len(heads) == len({head.partition(": ")[0] for head in heads}) == 2


@pytest.mark.parametrize("kind", ["text", "md", "html"])
def test_invalidated_attempts_are_counted_and_explained(kind):
    hot = [replace(r, invalidated=1) for r in records(cell(), [100])]
    made = " ".join(report.render([file(hot)], kind).split())
    assert "3 attempts invalidated" in made
    assert "measured again after heat" in made


# ------------------------------------------------------------------------------ several machines


def cluster() -> RecordFile:
    nodes = [
        {"host": f"host-{n}", "cpu": {"model": "Example CPU", "usable": 8 - n},
         "gpus": [{"name": "Example GPU", "driver": f"55{n}"}] * 2,
         "memory": {"total_bytes": 64 << 30}, "os": {"kernel": "6.1"},
         "libraries": {"torch": "2.9.0", "numpy": "2.1"}, "only": {f"on-{n}": n}}
        for n in range(2)
    ]  # fmt: skip
    many = records(cell(4), SLOW, node=[0, 0, 1, 1])
    return file(records(cell(), [100]), many, nodes=nodes, environment=nodes[0],
                node_differences=["node 1: gpus.0.driver 551, node 0: 550"])  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "md", "html"])
def test_each_machine_is_shown_and_differences_stand_out(kind):
    made = " ".join(report.render([cluster()], kind).replace("\\", "").split())
    assert "node 0: host host-0, 2 x Example GPU, driver 550, Example CPU (8 usable cores)" in made
    assert "node 1: host host-1, 2 x Example GPU, driver 551, Example CPU (7 usable cores)" in made
    assert "Nodes differ: node 1: gpus.0.driver 551, node 0: 550" in made
    assert made.index("Nodes differ") < made.index("Scaling over replicas", 100)
    assert "replica 3 (node 1 cpu:3)" in made
    if kind != "text":
        assert "on-1" in made  # the whole environment of each


def test_the_end_of_a_run_says_that_nodes_differ():
    assert "Nodes differ: node 1" in plain(terminal.summary([cluster()]), 200)
    header = cluster().header
    assert formatting.machine(header) == "2 nodes: Example GPU, Example CPU"
    small = header.nodes[1] | {"limits": {"cpus": 0.6}}
    header = replace(header, nodes=[header.nodes[0], small])
    assert formatting.machine(header).endswith("Example CPU, a quota of 0.6 CPUs")
    assert "a quota of 0.6 CPUs" in formatting.nodes(header.nodes)[1]
    assert "quota" not in formatting.nodes(header.nodes)[0]


def test_one_machine_is_shown_as_before(run):
    assert formatting.nodes(run.header.nodes) == []
    assert page._run("x", run)["nodes"] == []
    assert "Nodes differ" not in report.render([run], "html")


def test_odd_environments_of_nodes_are_no_trouble():
    nodes = [{}, {"cpu": {"model": 1}, "gpus": [{}], "memory": {}, "libraries": {"torch": None}}]
    odd = file(records(cell(), [100]), nodes=nodes)
    validation.header(odd.header)
    assert (
        formatting.nodes(odd.header.nodes)[0]
        == "node 0: host unknown, unknown CPU (? usable cores)"
    )
    for kind in report.FORMATS:
        assert report.render([odd], kind)


def test_the_made_up_run_still_reads_well():
    made = report.render([make.realistic(samples=40)], "md")
    assert "largest batch size that worked: 16" in made
