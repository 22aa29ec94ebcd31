"""The five answers of the first screen, and what failed by its cause."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from gpubench.analysis.compare import compare
from gpubench.analysis.summary import summarise
from gpubench.errors import InputError
from gpubench.records.record import Record, RecordFile
from gpubench.report import formatting, html
from gpubench.report.charts import ranks
from gpubench.report.html import page
from gpubench.report.sections import answers, headline
from gpubench.report.sections.answers import Answers
from gpubench.suite.types import Preprocess
from tests.report import make, make_pairs, make_pipelines


def of(*files: RecordFile, places: dict[str, str] | None = None) -> Answers:
    summaries = summarise(files)
    won = answers.ordered(headline.winners(summaries))
    return answers.answers(files, summaries, won, places or {})


def run(backends: Sequence[str] = ("torch-eager", "openvino"), **changes: object) -> RecordFile:
    return make.run([make.cell(backend=b) for b in backends], samples=40, **changes)


def test_the_fastest_by_how_much_and_latency_first():
    said = of(run()).fastest
    assert re.match(
        r"openvino is 2\.\d+× \[2\.\d+, 2\.\d+\] faster than torch-eager at batch 1: "
        r"[\d.]+ ms \[[\d.]+, [\d.]+\] for one batch", said[0],
    )  # fmt: skip
    assert re.search(r"at batch 1: \d+ images/s \[\d+, \d+\]", said[1])
    assert of(run(["torch-eager"])).fastest[0].startswith("torch-eager was measured alone at batch")


def test_what_does_not_beat_the_baseline_is_told_with_the_command_that_decides():
    speed = {"torch-eager": 1.0, "openvino": 1.001}
    base = run()
    alike = [
        replace(r, replicas=[replace(r.replicas[0], durations_ns=[
            int(1e7 / speed[r.cell.backend]
                * (1 + 0.01 * ((r.repeat * 7 + len(r.cell.backend)) % 5)))] * 40)])
        for r in base.records
    ]  # fmt: skip
    found = of(replace(base, records=alike))
    assert "faster than" not in found.fastest[0]
    assert "not told apart from" in found.fastest[0]
    assert re.fullmatch(
        "gpubench ab quick --batch-size 1 --replicas 1 --baseline backend=[a-z-]+ "
        "--candidate backend=[a-z-]+", found.command,
    )  # fmt: skip
    assert "decides between" in found.why


def test_what_is_plainer_than_the_winner_is_named_by_what_it_lacks():
    plain = make.run([make.cell(), make.cell(input="uint8")])
    one, other = summarise([plain])
    assert headline._differs(other, one) == "torch-eager (uint8 input)"
    assert headline._differs(one, other) == "torch-eager (without uint8 input)"


def test_the_command_that_decides_names_in_what_the_arms_differ():
    cells = [make.cell(backend="a", precision="bf16", options={"fast": True}),
             make.cell(backend="b"), make.cell(backend="b", batch_size=8)]  # fmt: skip
    head = make.header(cells)
    assert formatting.decide(head, cells[0], cells[1]).endswith(
        "--baseline backend=b,precision=fp32 --candidate backend=a,precision=bf16,fast=true"
    )
    same = replace(cells[1], precision="bf16", replicas=2)
    assert formatting.decide(head, cells[0], same).endswith(
        " --batch-size 1 --replicas 1 --precision bf16 --baseline backend=b "
        "--candidate backend=a,fast=true"
    )
    fleet = make.header(cells, command=["gpubench", "fleet", "quick", "--per", "node"])
    assert "--per" not in formatting.decide(fleet, cells[0], same)


def test_the_next_command_tunes_what_was_measured():
    words = "gpubench tune resnet18 --weights probe --images digits"
    assert of(run()).command == words
    said = {"output": "logits", "labels": "val.csv", "arguments": (("depth", 12),),
            "preprocess": Preprocess(size=(32, 48), layout="NHWC")}  # fmt: skip
    base = run()
    records = [replace(r, cell=replace(r.cell, **said)) for r in base.records]
    head = replace(base.header, planned=[replace(c, **said) for c in base.header.planned])
    assert of(replace(base, header=head, records=records)).command == (
        f"{words} --labels val.csv --output-name logits --preprocess 'size=[32, 48]' "
        "--preprocess layout=NHWC --arguments depth=12"
    )


def test_right_is_told_in_words_and_wrong_with_who():
    found = of(run())
    assert found.right == (
        "Yes: all 2 cells match the fp32 reference (top-1 100 % of 32 images). Accuracy 93.8 % "
        "[79.9, 98.3] of 32 labelled images."
    )
    assert not found.wrong
    base = run()
    alone = of(replace(base, records=[r for r in base.records if r.cell.backend == "openvino"]))
    assert alone.right.startswith("Yes: its one cell matches the fp32 reference (top-1 100 %")
    bad = [make.record(r.cell, r.repeat, make.np.random.default_rng(1), passed=False)
           if r.cell.backend == "openvino" else r for r in base.records]  # fmt: skip
    found = of(replace(base, records=bad))
    assert found.wrong
    assert found.right.startswith("1 of 2 cells answer otherwise than the fp32 reference")
    assert "openvino" in found.right


@pytest.mark.parametrize("engine", ["the compiled package itself", "onnxruntime CPU fp16"])
def test_what_the_answers_match_is_named_where_it_is_no_fp32_reference(engine: str):
    base = run()
    same = [replace(r, parity=replace(r.parity, reference=engine))
            for r in base.records if r.parity]  # fmt: skip
    assert f"all 2 cells match the reference ({engine}) (top-1" in of(
        replace(base, records=same)).right  # fmt: skip


def test_trust_is_what_the_run_separates_and_its_flags():
    assert re.match(r"This run separates rows that differ by .* % or more\.$", of(run()).trust[0])
    assert of(run()).trust[1] == "No cell is flagged."
    base = run()
    marked = [replace(r, flags=["CPU-BUSY"]) if r.cell.backend == "openvino" else r
              for r in base.records]  # fmt: skip
    assert of(replace(base, records=marked)).trust[1] == "1 of 2 cells flagged: CPU-BUSY 1."
    busy = replace(base, records=[replace(r, flags=["DRIFT", "CPU-BUSY"]) for r in base.records])
    assert of(busy).trust[0].startswith("The machine was busy (CPU-BUSY, DRIFT): ")
    assert of(busy).trust[1] == "No cell has another flag."


def skipped(n: int) -> RecordFile:
    cells = [make.cell(backend="tensorrt", batch_size=b) for b in range(1, n + 1)]
    records = [Record(cell=c, repeat=0, status="unavailable", reason="no CUDA device",
                      remedy="install a driver") for c in cells]  # fmt: skip
    return RecordFile("x", make.header(cells), records)


def test_where_all_is_skipped_the_reason_is_told_once():
    file = skipped(12)
    found = of(file)
    assert found.fastest == ["Nothing was measured: no cell could run."]
    assert found.command == "gpubench doctor"
    (cause,) = answers.causes(summarise([file]))
    assert (cause.reason, cause.remedy, len(cause.cells)) == (
        "no CUDA device", "install a driver", 12)  # fmt: skip
    made = html.render([file])
    assert made.count("no CUDA device") == 2  # on top, and with every cell
    assert "Skips and failures" not in made


def test_failures_come_before_skips():
    kinds = [c.status for c in answers.causes(summarise([make.realistic(samples=10)]))]
    bad = [headline.bad(kind) for kind in kinds]
    assert bad == sorted(bad, reverse=True)
    assert kinds.count("failed: parity") == 1


def ranked(file: RecordFile) -> list[ranks.Ranks]:
    summaries = summarise([file])
    return ranks.build(answers.ordered(headline.winners(summaries)), summaries)


def test_ranks_are_in_order_with_places_on_the_axis():
    latency, throughput = ranked(make.run(make.grid(replicas=(1,), batches=(1, 8))))
    for chart, sign in ((latency, 1), (throughput, -1)):
        at = [row.at for row in chart.rows]
        assert at == sorted(at, key=lambda x: sign * x)
        assert all(0 <= row.low <= row.at <= row.high <= 100 for row in chart.rows)
    assert latency.title == "Latency at batch 1"
    assert [row.label for row in latency.rows] == [
        "openvino", "onnxruntime", "torch-compile", "torch-eager"]  # fmt: skip
    assert throughput.rows[-1].times == "baseline"


def test_values_without_a_usable_interval_stay_off_the_axis():
    wild = make.run([make.cell(backend=b) for b in ("torch-eager", "openvino")], samples=20)
    factor = {0: 1.0, 1: 40.0, 2: 900.0}
    records = [
        r if r.cell.backend == "torch-eager" else
        replace(r, replicas=[replace(r.replicas[0], durations_ns=[
            int(d * factor[r.repeat]) for d in r.replicas[0].durations_ns])])
        for r in wild.records
    ]  # fmt: skip
    latency = next(c for c in ranked(replace(wild, records=records)) if "Latency" in c.title)
    row = next(r for r in latency.rows if r.label == "openvino")
    assert (row.state, row.at, row.low) == ("no usable interval", None, None)
    text = html.render([replace(wild, records=records)])
    assert re.search(r'class="value">[^<]+<small>no usable interval: repeats [\d.]+ to', text)
    assert latency.rows[0].label == "torch-eager"
    assert latency.rows[0].high == pytest.approx(ranks.ROOM)  # the axis ends with what is on it


def test_several_machines_are_a_table_with_ratios_to_the_first():
    cells = make.grid(replicas=(1,), batches=(1, 8), scenarios=("latency",))
    one = make.run(cells, samples=40)
    two = make.run(cells, samples=40, run_id="b", fingerprint="beef", factor=0.5)
    two = replace(two, header=replace(two.header, environment={"cpu": {"model": "B", "cores": 4}}))
    made = html.render([one, two])
    table = made.partition("on each machine</h3>")[2].partition("</table>")[0]
    assert "how many times as fast as Example CPU 9000 (8 cores)" in table
    assert len(re.findall(r"<tr><td", table)) == 4
    times = [float(t) for t in re.findall(r"<b>([\d.]+)×</b>", table)]
    assert times == pytest.approx([2.0] * 4, rel=0.05)
    assert "on B (4 cores): " in made  # the sentence says where


def test_one_page_is_a_sheet_without_scripts_and_of_runs_only():
    made = html.render([run()], one_page=True)
    assert len(made) < 40_000
    assert "<script" not in made
    assert '<section id="answer"' in made
    assert 'id="measurements"' not in made
    pair = make_pairs.arms([make.cell()], pairs=4, samples=5)
    with pytest.raises(InputError, match="of an A/B or a search begins with its own answer"):
        html.render(list(pair), one_page=True)


def test_a_pipeline_begins_with_its_stages():
    made = html.render([make_pipelines.run()])
    first = made.partition('<section id="answer"')[2].partition("</section>")[0]
    assert first.count('<ol class="ranks stages">') == 1
    assert "(pipeline)" in first  # its winner comes first


def test_a_comparison_that_decides_nothing_names_the_command_that_would():
    words = {"command": ["gpubench", "ab", "quick", "--baseline", "a=b"]}
    pair = make_pairs.arms([make.cell()], pairs=2, samples=5, sd=0.2, candidate=words)
    made = html.render(list(pair))
    assert ">INCONCLUSIVE</span>" in made
    out = Path(pair[0].path).parent.parent
    assert re.search(rf'id="next"><code>gpubench ab .*--resume -o {out}</code>', made)
    typed = ["gpubench", "run", "mine.toml", "--batch-size", "1", "--repeats", "9"]
    one, two = run(run_id="a"), run(run_id="b", command=typed)
    commit = {"directory": {"commit": "abc1234def", "dirty": False}}
    one = replace(one, header=replace(one.header, environment=one.header.environment | commit))
    stored = page.comparison(compare.view(one, two))
    assert (
        'id="next"><code>gpubench ab mine.toml --batch-size 1 --baseline-ref abc1234def</code>'
        in stored
    )
    typed = ["gpubench", "fleet", "mine.toml", "--price", "L4=1", "--batch-size", "1"]
    two = replace(two, header=replace(two.header, command=typed))
    stored = page.comparison(compare.view(one, two))
    assert "gpubench ab mine.toml --batch-size 1 --baseline-ref abc1234def</code>" in stored
    two = replace(two, header=replace(two.header, pairing=pair[1].header.pairing))
    assert "--baseline-ref" not in page.comparison(compare.view(one, two)), "a cell of an A/B"
