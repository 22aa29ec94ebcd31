"""Tables of the whole pipeline, and what is said of answers."""

import pytest
from msgspec.structs import replace

from gpubench.analysis.summary import Summary, flags_of, summarise
from gpubench.analysis.tables import accuracy, pipeline
from gpubench.analysis.tables.table import Part, Table
from gpubench.records.record import Record, RecordFile
from gpubench.report.sections import headline
from tests.report import make, make_pipelines

MS = 1e6


@pytest.fixture(scope="module")
def run() -> RecordFile:
    return make_pipelines.run()


@pytest.fixture(scope="module")
def tables(run: RecordFile) -> dict[str, Table]:
    return {table.title: table for table in make.tables([run])}


def rows(table: Table) -> list[dict]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def of(table: Table, **wanted: object) -> dict:
    found = [r for r in rows(table) if all(r[k] == v for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def changed(run: RecordFile, change) -> RecordFile:
    return replace(run, records=[change(r) for r in run.records])


# ------------------------------------------------------------------------------ side by side


def test_boundaries_of_one_configuration_stand_in_one_row(tables: dict[str, Table]) -> None:
    table = tables[pipeline.ADDS["latency"]]
    assert len(table.rows) == 3 * 3  # backends x decoders
    row = of(table, backend="openvino", decoder="pil")
    compute, transfer, whole = (row[b].value for b in pipeline.BOUNDARIES)
    assert compute < transfer * 1.02 < whole
    assert row["hidden"].value == pytest.approx(1 - compute / whole, abs=0.01)
    assert row["hidden"].low < row["hidden"].value < row["hidden"].high
    assert "boundary" not in row
    assert not any("boundary" in note for note in table.notes if note.startswith("In every"))


def test_hidden_means_the_same_of_images_per_second(tables: dict[str, Table]) -> None:
    row = of(tables[pipeline.ADDS["throughput"]], backend="onnxruntime", decoder="pil")
    assert row["hidden"].value == pytest.approx(
        1 - row["pipeline"].value / row["compute"].value, abs=0.01
    )


def test_a_cell_with_wrong_answers_hides_nothing_but_is_shown(run: RecordFile) -> None:
    def wrong(r: Record) -> Record:
        bad = r.cell.boundary == "pipeline" and r.cell.decoder == "turbo"
        return replace(r, status="failed", kind="accuracy", reason="low") if bad else r

    table = {t.title: t for t in make.tables([changed(run, wrong)])}[pipeline.ADDS["latency"]]
    row = of(table, backend="openvino", decoder="turbo")
    assert row["pipeline"].value > 0
    assert row["hidden"].why == "not ranked"
    assert "failed: accuracy" in row["flags"]


def test_what_the_host_gives_stands_beside_its_bytes_and_its_time(run: RecordFile) -> None:
    def given(r: Record) -> Record:
        fewer = r.cell.backend == "openvino"
        stages = {"transform": 1 if fewer else 4, "copy_in": 2, "run": 30} | (
            {"convert": 5} if fewer else {}
        )
        return replace(
            r, cell=replace(r.cell, input="uint8" if fewer else "float32"),
            facts=r.facts | {"copied_in_bytes": 100 if fewer else 400},
            replicas=[replace(x, stages_ns=stages) for x in r.replicas],
        )  # fmt: skip

    assert pipeline.GIVEN not in {t.title for t in make.tables([run])}, "all give float32"
    made = {t.title: t for t in make.tables([changed(run, given)])}[pipeline.GIVEN]
    found = {row["input"]: row for row in rows(made)}
    assert (found["float32"]["copied in"], found["uint8"]["copied in"]) == (400, 100)
    assert "nothing is left to copy" in " ".join(made.notes)
    assert (found["float32"]["on the host"], found["uint8"]["on the host"]) == (4, 6)
    assert (found["uint8"]["copy in (H2D)"], found["uint8"]["compute"]) == (2, 30)


def test_one_boundary_alone_makes_no_such_table() -> None:
    found = make_pipelines.run(make_pipelines.cells(decoders=())[:1])
    assert not {t.title for t in make.tables([found])} & set(pipeline.ADDS.values())


def test_boundaries_are_never_ranked_against_each_other(run: RecordFile) -> None:
    summaries = summarise([run])
    won = headline.winners(summaries)
    assert {w.summary.cell.boundary for w in won} == {
        s.cell.boundary for s in summaries if s.ranked
    }
    for winner in won:
        assert {s.cell.boundary for s in winner.ties} <= {winner.summary.cell.boundary}
    bases = {t.title: t for t in make.tables([run])}["Latency per batch"]
    for row in rows(bases):
        if row["backend"] == "torch-eager":
            assert row["speed-up"].why == "baseline"  # its own boundary's, its own decoder's


# ------------------------------------------------------------------------------ stages


def test_stages_are_in_order_with_their_share(tables: dict[str, Table]) -> None:
    table = tables[pipeline.STAGES]
    names = [c.name for c in table.columns]
    at = names.index("read")
    assert names[at : at + 7] == list(pipeline.NAMES.values())
    row = of(table, backend="openvino", decoder="pil", scenario="latency")
    whole = row["one after another"]
    assert whole == pytest.approx(8e9 / row["images/s"].value), "as measured"
    assert row["decode"].value == pytest.approx(40 * MS, rel=0.05)
    assert row["decode"].share == pytest.approx(row["decode"].value / whole)
    parts = [v for v in row.values() if isinstance(v, Part)]
    assert sum(p.share for p in parts) == pytest.approx(1)
    assert row["bottleneck"] == "decode"
    assert row["overlapped"] is None
    assert row["shared out"] == "loading and computing on the same 2 cores"


def test_overlap_is_measured_against_the_slower_side(tables: dict[str, Table]) -> None:
    row = of(tables[pipeline.STAGES], backend="onnxruntime", decoder="pil",
             scenario="throughput")  # fmt: skip
    assert row["slower side"] == "loader"
    assert row["of the slower side"] == pytest.approx(0.93, abs=0.03)
    assert row["overlapped"] < row["one after another"]
    assert row["images/s"].value < row["if it were free"]
    assert row["shared out"] == "1 core loads (threads), 1 computes, zero-copy"


def test_strange_stages_and_facts_do_no_harm(run: RecordFile) -> None:
    def odd(r: Record) -> Record:
        if r.cell.boundary != "pipeline":
            return r
        samples = [replace(s, stages_ns=dict.fromkeys(s.stages_ns, 0) | {"unheard of": 5})
                   for s in r.replicas]  # fmt: skip
        path = {"loader": 3, "loader_cores": "x", "session_cores": [None], "skipped": [1]}
        return replace(r, replicas=samples, facts={"pipeline": path})

    table = {t.title: t for t in make.tables([changed(run, odd)])}[pipeline.STAGES]
    row = rows(table)[0]
    assert row["decode"] == Part(0, 0)
    assert "unheard of" not in row
    assert row["shared out"] == "1 computes"
    assert any("[1]" in note for note in table.notes)
    nothing = changed(run, lambda r: replace(r, facts={"pipeline": "text"}))
    assert pipeline.skipped(summarise([nothing])) == []


def test_skipped_pictures_are_told_once_for_all_cells_that_skipped_them(run: RecordFile) -> None:
    said = pipeline.skipped(summarise([run]))
    assert len(said) == 2  # one after another; by the loader
    assert said[0].startswith("Images skipped (torch-eager fp32 b8 x1 latency")
    assert said[1].endswith("and 8 more): 2 truncated, 1 too large.")


# ------------------------------------------------------------------------------ decoders


def test_decoders_show_speed_and_what_they_change(tables: dict[str, Table]) -> None:
    table = tables["Decoders"]
    assert [r["decoder"] for r in rows(table)] == list(make_pipelines.DECODERS)
    pil, turbo = (of(table, decoder=d) for d in ("pil", "turbo"))
    assert pil["images/s of one core"].value == pytest.approx(1000 / 7.52)
    assert pil["over pil"].why == "reference"
    assert turbo["over pil"].value == pytest.approx(7.52 / 2.22)
    assert (turbo["largest difference"], turbo["mean difference"]) == (24.0, 0.6)
    assert turbo["top-1 match"] == 0.992
    assert (turbo["accuracy"].value, turbo["accuracy"].n) == (247 / 256, 256)


def test_of_one_core_though_a_batch_was_shared_out_over_several() -> None:
    """Eight pictures on three cores: one of them had three."""
    found = make_pipelines.run(make_pipelines.cells(decoders=("pil",)))
    found = changed(found, lambda r: replace(r, facts={**r.facts, "pipeline": {"lanes": 3}}))
    row = of({t.title: t for t in make.tables([found])}["Decoders"], decoder="pil")
    assert row["images/s of one core"].value == pytest.approx(3 * 1000 / 7.52 / 8)


def test_without_pil_there_is_no_ratio_and_without_a_check_no_agreement() -> None:
    found = make_pipelines.run(make_pipelines.cells(decoders=("turbo",)))
    found = changed(found, lambda r: replace(r, pipeline=None))
    row = of({t.title: t for t in make.tables([found])}["Decoders"], decoder="turbo")
    assert row["over pil"].why == "pil not measured"
    assert row["top-1 match"] is None
    assert row["accuracy"].why == "not checked"


def test_decoders_of_several_workloads_are_not_pooled(run: RecordFile) -> None:
    other = changed(run, lambda r: replace(r, cell=replace(r.cell, images="digits")))
    other = replace(other, header=replace(other.header, planned=[], run_id="other"))
    table = {t.title: t for t in make.tables([run, other])}["Decoders"]
    assert len(table.rows) == 6
    assert {"run", "images"} <= {c.name for c in table.columns}


# ------------------------------------------------------------------------------ answers


def test_agreement_and_accuracy_are_of_what_the_row_timed(tables: dict[str, Table]) -> None:
    for title in ("Latency per batch", "Throughput"):
        alone = of(tables[title], backend="openvino", boundary="compute")
        whole = of(tables[title], backend="openvino", decoder="turbo")
        assert (alone["accuracy"].value, alone["accuracy"].n) == (1263 / 1297, 1297)
        assert alone["accuracy"].low == pytest.approx(0.9636, abs=1e-4)
        assert (whole["accuracy"].value, whole["accuracy"].n) == (247 / 256, 256)
        assert (alone["match"], whole["match"]) == (1 - 3 / 1297, 0.992)


def test_accuracy_table_has_the_drop_and_the_floors(tables: dict[str, Table]) -> None:
    row = next(r for r in rows(tables["Accuracy"]) if r["boundary"] == "pipeline")
    assert row["drop"] == pytest.approx(100 * 4 / 1297)
    assert row["reference"] == 1267 / 1297
    assert row["top-5"].value == 1290 / 1297
    assert (row["floor"], row["drop allowed"]) == (0.95, 1.0)
    assert row["whole pipeline"].n == 256


def test_without_floors_or_top5_their_columns_are_left_out() -> None:
    table = {t.title: t for t in make.tables([make.run([make.cell()])])}["Accuracy"]
    assert not {"floor", "drop allowed", "top-5", "whole pipeline"} & {
        c.name for c in table.columns
    }


def test_no_labels_no_accuracy_table(run: RecordFile) -> None:
    def unlabelled(r: Record) -> Record:
        none = {"labelled": 0, "correct": 0, "reference_correct": 0}
        parity = replace(r.parity, **none, correct5=0, reference_correct5=0)
        path = r.pipeline and replace(r.pipeline, labelled=0, correct=0, correct5=0)
        return replace(r, parity=parity, pipeline=path)

    made = {t.title: t for t in make.tables([changed(run, unlabelled)])}
    assert "Accuracy" not in made
    assert "accuracy" not in {c.name for c in made["Throughput"].columns}
    assert "match" in {c.name for c in made["Throughput"].columns}


def below(run: RecordFile, wrong: str = "openvino") -> RecordFile:
    """One backend below the floor in every repeat."""

    def lower(r: Record) -> Record:
        if r.cell.backend != wrong:
            return r
        parity = make_pipelines.parity(r.cell, low=True)
        return replace(r, parity=parity, status="failed", kind="accuracy", reason="92.6 % < 95 %")

    return changed(run, lower)


def test_a_cell_below_its_floor_keeps_its_timing_and_is_never_ranked(run: RecordFile) -> None:
    found = below(run)
    made = {t.title: t for t in make.tables([found])}
    row = of(made["Throughput"], backend="openvino", boundary="compute")
    assert row["images/s"].value > 0
    assert row["speed-up"].why == "not ranked"
    assert row["flags"] == ["failed: accuracy"]
    s = next(s for s in summarise([found]) if s.cell.backend == "openvino")
    assert accuracy.verdict(s) == "LOW ACCURACY"
    assert {w.summary.cell.backend for w in headline.winners(summarise([found]))} == {"onnxruntime"}
    assert any(r["status"] == ["failed: accuracy"] for r in rows(made["Skips and failures"]))


def test_the_worst_repeat_is_the_one_below_the_floor() -> None:
    cell = make_pipelines.cells()[0]
    good = make_pipelines.run([cell]).records
    bad = replace(good[1], parity=make_pipelines.parity(cell, low=True), status="failed",
                  kind="accuracy")  # fmt: skip
    s = summarise([RecordFile("x", make.header([cell]), [good[0], bad, good[2]])])[0]
    assert isinstance(s, Summary)
    assert s.status == "failed: accuracy"
    assert flags_of(s)[0] == "failed: accuracy"
    assert accuracy.computed(s).value == 1201 / 1297


def test_a_wrong_path_is_told_apart_from_wrong_computing(run: RecordFile) -> None:
    s = next(s for s in summarise([run]) if s.pipeline)
    bad = replace(s.records[0], pipeline=replace(s.pipeline, passed=False, top1_agreement=0.5))
    s = Summary(run="x", baseline="", policy=s.policy, cell=s.cell, records=[bad, *s.records[1:]])
    assert accuracy.verdict(s) == "PIPELINE MISMATCH"
    assert accuracy.agreement(s) == 0.5
