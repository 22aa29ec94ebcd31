"""Pipelines in every format: lines, bars, answers that differ, thumbnails from strangers."""

import base64
import csv
import io
import json
import re
import struct

import pytest
from msgspec.structs import replace

from gpubench import report
from gpubench.analysis.summary import summarise
from gpubench.records.parity import Disagreement
from gpubench.records.record import RecordFile
from gpubench.report import exports, github_actions, terminal
from gpubench.report.charts import pipeline
from gpubench.report.sections import pipeline as sections_pipeline
from gpubench.report.sections import wrong_answers
from tests.report import make, make_pipelines
from tests.report.test_report import HOSTILE, Tags, plain


@pytest.fixture(scope="module")
def run() -> RecordFile:
    return make_pipelines.run()


@pytest.fixture(scope="module")
def page_of_run(run: RecordFile) -> str:
    return report.render([run], "html")


@pytest.fixture(scope="module")
def words(run: RecordFile) -> str:
    return report.render([run], "text")


# ------------------------------------------------------------------------------ lines and bars


def test_one_line_for_each_pipeline_cell(run: RecordFile) -> None:
    lines = sections_pipeline.lines(summarise([run]))
    assert len(lines) == 18
    assert all(len(line) <= 320 for line in lines)  # two lines of a usual terminal
    found = next(x for x in lines if x.startswith("onnxruntime fp32 b8 x1 throughput pipeline pil"))
    for part in (": decode 40.0 ms (4", "; sum 95.9 ms, overlapped ", "of the loader alone); ",
                 " if the bottleneck, decode, were free",
                 "; 1 core loads (threads), 1 computes, zero-copy."):  # fmt: skip
        assert part in found


def test_the_first_thing_said_is_how_much_is_hidden(run: RecordFile, words: str) -> None:
    said = sections_pipeline.headline(summarise([run]))
    assert re.fullmatch(
        r"Of the whole pipeline's latency a compute-only number leaves out \d\d % to \d\d %\.",
        said[0],
    )
    summary = plain(terminal.summary([run]))
    for line in said:
        assert line in words
        assert line in summary
        assert line in report.render([run], "md")
    assert "Pipeline: openvino" not in report.render([make.run([make.cell()])], "text")


def test_nothing_is_said_to_be_hidden_that_no_interval_shows() -> None:
    cells = make_pipelines.cells(backends=("openvino",), decoders=("pil", "turbo"))
    assert sections_pipeline.headline(summarise([make_pipelines.run(cells, repeats=1)])) == []
    fast = make_pipelines.run(cells)
    level = {r.repeat: r.replicas for r in fast.records if r.cell.boundary == "compute"
             and r.cell.scenario == "latency"}  # fmt: skip
    records = [
        replace(r, replicas=level[r.repeat]) if r.cell.decoder == "turbo" else r
        for r in fast.records
    ]
    said = sections_pipeline.headline(summarise([replace(fast, records=records)]))
    assert said[0].endswith("% (shown in 1 of 2 comparisons).")


def test_the_summary_of_a_run_tells_paths_and_what_was_skipped(run: RecordFile) -> None:
    made = plain(terminal.summary([run]), 400)
    assert made.count("Pipeline: ") == terminal.MOST
    assert "8 more: gpubench report" in made
    assert "97.38 % [96.36, 98.12]" in made
    assert "2 truncated, 1 too large" in made


def test_bars_hold_every_stage_and_the_time_overlapped(run: RecordFile) -> None:
    made = pipeline.page(summarise([run]))
    assert [name for name, _ in made["steps"]][:3] == ["read", "decode", "resize + normalise"]
    one, all_at_once = made["charts"]
    wide = [sum(width for *_, width in bar.parts) for bar in one["bars"]]
    assert [len(bar.parts) for bar in one["bars"]] == [7] * 9
    assert wide == sorted(wide)  # the fastest first
    assert wide[-1] == pytest.approx(100, abs=0.1)
    ticks = [bar.overlapped for bar in all_at_once["bars"]]
    assert ticks == sorted(ticks)
    assert len(ticks) == 9
    assert {bar.overlapped for bar in one["bars"]} == {None}


def test_stages_sort_by_their_time(page_of_run: str) -> None:
    values = re.findall(r'data-label="decode" data-v="([^"]*)"', page_of_run)
    assert len([float(v) for v in values]) == 18


def test_many_cells_have_a_bar_each_up_to_a_limit() -> None:
    cells = make_pipelines.cells(batches=tuple(range(1, 10)), scenarios=("latency",))
    chart = pipeline.page(summarise([make_pipelines.run(cells, repeats=1)]))["charts"][0]
    assert chart["left_out"] == 9 * 9 - pipeline.MOST
    assert len({bar.name for bar in chart["bars"]}) == pipeline.MOST


def test_without_a_pipeline_the_page_has_no_such_section() -> None:
    made = report.render([make.run([make.cell()])], "html")
    assert 'id="path"' not in made
    assert 'id="differing"' not in made


def test_csv_json_and_markdown_are_complete(run: RecordFile) -> None:
    found = list(csv.DictReader(io.StringIO(report.render([run], "csv"))))
    key = next(c.key for c in make_pipelines.cells() if c.scenario == "throughput" and
               c.boundary == "pipeline" and c.decoder == "turbo")  # fmt: skip
    mine = {r["metric"]: r for r in found if r["cell"] == key}
    assert {f"stage {k}" for k in ("read", "decode", "transform", "copy_in", "run", "copy_out",
            "postprocess")} <= set(mine)  # fmt: skip
    assert mine["stage decode"]["value"] == "12800000.0"
    assert mine["accuracy"]["decoder"] == "turbo"
    assert float(mine["accuracy"]["low"]) < 1263 / 1297 < float(mine["accuracy"]["high"])
    assert mine["pipeline accuracy"]["n"] == "256"
    assert mine["images/s if the bottleneck were free"]["note"] in ("run", "decode")

    told = json.loads(report.render([run], "json"))
    assert len(told["pipelines"]) == 18
    one = next(p for p in told["pipelines"] if p["cell"] == key)
    assert one["breakdown"]["stages"]["decode"] == 12800000
    assert one["facts"]["loader_cores"] == 1
    assert [len(g["images"]) for g in told["disagreements"]] == [3, 3, 3]

    made = report.render([run], "md")
    for title in ("Stages of the whole pipeline", "Decoders", "Accuracy", wrong_answers.TITLE):
        assert f"## {title}" in made


# ------------------------------------------------------------------------------ exports


def test_cells_of_one_export_have_names_of_their_own(run: RecordFile) -> None:
    told = json.loads(exports.export([run], "pytest-benchmark")[""])["benchmarks"]
    assert len({b["name"] for b in told}) == len(told) == 30
    turbo = next(b for b in told if "pipeline-turbo" in b["name"])
    assert turbo["params"]["decoder"] == "turbo"
    assert turbo["extra_info"]["accuracy"]["n"] == 256
    assert turbo["extra_info"]["pipeline"]["decoder"] == "turbo"
    assert len({b["group"] for b in told}) == 2  # scenarios: each has a unit of its own


def test_github_shows_accuracy_with_the_answers(run: RecordFile) -> None:
    made = github_actions.run_summary([run])
    assert "<summary>Accuracy: 30 rows</summary>" in made
    assert "What the pipeline adds to latency" in made


# ------------------------------------------------------------------------------ answers that differ


def with_images(images: list[Disagreement], most: int = 0) -> RecordFile:
    """One cell that differs on these."""
    found = make_pipelines.run(make_pipelines.cells(backends=("openvino",), decoders=())[:1])
    parity = replace(found.records[0].parity, disagreements=images, disagreeing=most)
    return replace(found, records=[replace(r, parity=parity) for r in found.records])


def image(**changes: object) -> Disagreement:
    base = make_pipelines.disagreements(make_pipelines.cells()[0])[0]
    return replace(base, **changes)


def test_wrong_answers_come_first_and_equal_lists_are_one(run: RecordFile) -> None:
    found = wrong_answers.groups(summarise([run]))
    assert len(found) == 3  # one for each decoder's pictures
    assert len(found[0].cells) == 6
    assert found[0].head == "openvino fp32 b8 x1 latency and 5 more cells: 3 images"
    assert [wrong_answers.outcome(d) for d in found[0].images] == [
        "wrong, the reference right", "label not known", "right, the reference wrong",
    ]  # fmt: skip
    assert wrong_answers.sentence(found[0].images[0]) == (
        "digits/pil-0.jpg: 4 (61.0 %); reference: 7 (58.0 %); label: 7: wrong, the reference right"
    )


def test_long_lists_are_cut_in_text_and_told(words: str) -> None:
    assert "digits/pil-0.jpg: 4 (61.0 %)" in words
    many = with_images([image(name=f"n{i}", thumbnail="") for i in range(30)], most=70)
    group = wrong_answers.groups(summarise([many]))[0]
    assert "70 images, 30 of them listed" in group.head
    assert wrong_answers.lines(group)[-1] == "18 more: gpubench report -f json"
    assert "n29" in report.render([many], "md")
    assert not wrong_answers.page(summarise([many]))["open"]


def test_a_score_that_is_no_share_says_so() -> None:
    assert wrong_answers.score(-1) == "not finite"
    assert wrong_answers.score(float("nan")) == "not finite"


def test_thumbnails_are_shown_with_their_names(page_of_run: str) -> None:
    pictures = [a for t, a in Tags(page_of_run).seen if t == "img"]
    assert len(pictures) == 9
    assert pictures[0]["alt"] == "Thumbnail of digits/pil-0.jpg"
    assert all(str(a["src"]).startswith("data:image/jpeg;base64,/9j/") for a in pictures)
    assert len(page_of_run.encode()) < 3_000_000


JPEG = base64.b64decode(make_pipelines.thumbnail())
AT = JPEG.index(b"\xff\xc0")
BOMB = JPEG[: AT + 5] + struct.pack(">HH", 65500, 65500) + JPEG[AT + 9 :]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xd8\xff", b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        JPEG[:-2], JPEG[2:], BOMB, b"\xff\xd8\xff" + b"\0" * 40 + b"\xff\xd9",
        b"\xff\xd8" + b"\xff\xe0\x00\x00" * 9 + b"\xff\xd9",
        JPEG[:-2] + b"\0" * wrong_answers.LARGEST + b"\xff\xd9",
    ],
    ids=["empty", "magic-only", "svg", "png", "cut", "headless", "bomb", "no-frame", "no-length",
         "large"],
)  # fmt: skip
def test_what_is_no_small_jpeg_is_not_shown(data: bytes) -> None:
    assert wrong_answers.thumbnail(base64.b64encode(data).decode()) == ""


@pytest.mark.parametrize("text", ['"><script>', "é", "/9j/ \n", HOSTILE, "A" * 10_000_000])
def test_what_is_no_base64_is_not_shown(text: str) -> None:
    assert wrong_answers.thumbnail(text) == ""


def test_a_good_thumbnail_passes_as_it_is() -> None:
    assert wrong_answers.thumbnail(make_pipelines.thumbnail()) == make_pipelines.thumbnail()
    assert wrong_answers.thumbnail(make_pipelines.thumbnail(side=wrong_answers.WIDEST + 1)) == ""


def test_hostile_names_of_pictures_make_no_tag() -> None:
    evil = {"name": HOSTILE, "answer": HOSTILE, "expected": HOSTILE, "label": HOSTILE}
    made = report.render([with_images([image(**evil)])], "html")
    pictures = [a for t, a in Tags(made).seen if t == "img"]
    assert [sorted(a) for a in pictures] == [["alt", "src"]]
    none = report.render([with_images([image(thumbnail=HOSTILE)])], "html")
    assert not [a for t, a in Tags(none).seen if t == "img"]
    assert 'aria-label="No thumbnail of digits/pil-0.jpg"' in none


def test_a_page_holds_no_more_than_its_budget_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_answers, "BUDGET", 2 * len(make_pipelines.thumbnail()))
    items = [image(name=f"n{i}") for i in range(5)]
    shown = wrong_answers.page(summarise([with_images(items)]))["groups"][0]["images"]
    assert [bool(d["picture"]) for d in shown].count(True) == 2
