import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from msgspec.structs import replace
from rich.console import Console

from gpubench import report
from gpubench.analysis.compare.compare import compare
from gpubench.analysis.compare.verdicts import CAVEAT
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import WIDE, summarise
from gpubench.errors import InputError
from gpubench.records.record import FLAGS, Record, RecordFile
from gpubench.report import formatting, json_report, markdown, terminal
from gpubench.report.charts import overview
from gpubench.report.html import templating
from gpubench.report.sections import answers, headline
from gpubench.suite.types import Policy
from tests.report import make

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"|`*_[x](y)\u2028{{7*7}}"


@pytest.fixture(scope="module")
def run() -> RecordFile:
    return make.realistic(samples=60)


@pytest.fixture(scope="module")
def page_of_run(run) -> str:
    return report.render([run], "html")


def hostile() -> RecordFile:
    cells = [make.cell(), make.cell(backend=HOSTILE, options={HOSTILE: HOSTILE})]
    file = make.run(cells, samples=10, run_id=HOSTILE, environment={HOSTILE: {HOSTILE: HOSTILE}},
                    command=["gpubench", "run", HOSTILE])  # fmt: skip
    dead = Record(cell=make.cell(model=HOSTILE), repeat=0, status="failed", kind="error",
                  reason=HOSTILE, remedy=HOSTILE)  # fmt: skip
    suite = replace(file.header.suite, name=HOSTILE, description=HOSTILE)
    header = replace(file.header, suite=suite, started=HOSTILE, fingerprint=HOSTILE)
    return replace(file, header=header, records=[*file.records, dead], notes=[HOSTILE],
                   path=HOSTILE)  # fmt: skip


def plain(renderable, width: int = 160) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue()


class Tags(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_importing_the_package_is_light():
    code = "import sys, gpubench.report; print([m for m in ('numpy', 'pandas', 'rich', 'jinja2', " \
        "'scipy', 'torch', 'altair', 'vl_convert') if m in sys.modules])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("code", ["import os; os.kill(os.getpid(), 5)", "raise OSError('no room')"])
def test_without_the_charts_library_the_page_is_whole_and_says_so(run, monkeypatch, capsys, code):
    monkeypatch.setattr(templating, "_BUNDLE", code)
    monkeypatch.setattr(templating, "vega", templating.vega.__wrapped__)
    page = report.render([run], "html")
    why = "SIGTRAP" if "kill" in code else "OSError: no room"
    assert (
        f'<p class="note">no charts: vl-convert, which has their library, ended with {why}' in page
    )
    assert templating.NO_VEGA in page
    assert templating.HIDE in page
    assert run.records[0].cell.key in page
    assert capsys.readouterr().err.startswith("warning: no charts: vl-convert, which has")


def test_unknown_format_and_nothing_to_report_are_input_errors(run):
    with pytest.raises(InputError, match="'pdf'; choose one of text, html, md, csv, json"):
        report.render([run], "pdf")
    with pytest.raises(InputError, match="no record file"):
        report.render([], "md")


@pytest.mark.parametrize("kind", report.FORMATS)
def test_every_format_is_deterministic_and_copes_with_trouble(run, kind):
    made = report.render([run], kind)
    assert made == report.render([run], kind)
    assert "out-of-memory" in made
    empty = RecordFile("x", make.header([make.cell()]), [])
    assert report.render([empty], kind)


def test_html_is_one_small_file_without_outside_references(page_of_run):
    assert len(page_of_run.encode()) < 3_000_000
    for tag, attributes in Tags(page_of_run).seen:
        assert tag != "script" or "src" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"
        assert "src" not in attributes
    assert "@import" not in templating.asset("style.css")
    assert "url(" not in templating.asset("style.css")


def test_html_says_once_what_runs_share_and_each_run_what_is_its_own(run):
    other = make.run([make.cell()], run_id="another", environment={"cpu": {"model": "Other CPU"}})
    for files, lines in ([run], 1), ([run, run], 3), ([run, other], 3):
        made = report.render(files, "html")
        head = made.partition("</header>")[0]
        assert head.count('class="run"') == lines
        assert head.count("resnet18") == head.count("probe weights") == 1
        assert made.count("<dt>raw records</dt>") == len(files)


def test_html_has_one_table_of_all_cells_with_groups_of_columns(run):
    made = report.render([run], "html")
    table = made.partition('id="measurements">')[2].partition("</section>")[0]
    groups = re.findall(r'<th scope="colgroup" colspan="(\d+)" class="g\d">(.*?)</th>', table)
    names = [name for _, name in groups]
    assert names[:4] == ["", "Latency", "Throughput", ""]
    assert {"Check of answers", "Accuracy", "Cold start"} <= {*names}
    heads = re.findall(r'<button type="button">(.*?)</button></th>', table)
    assert sum(int(n) for n, _ in groups) + 2 == len(heads)  # and flags and keys
    assert heads.count("match") == heads.count("backend") == 1
    lone = report.render([make.run([make.cell()])], "html")
    assert ">1 row</span>" in lone
    assert "p50 latency (ms), log scale" in made  # of the trade-off


def test_a_row_has_one_unit_and_columns_that_say_the_same_are_a_note():
    cells = [make.cell(batch_size=n) for n in (1, 64)]
    made = report.render([make.run(cells, samples=400)], "html")
    table = made.partition('id="measurements">')[2].partition("</section>")[0]
    for row in re.findall(r"<tr class=.filtered.*?</tr>", table, re.S):
        assert len(set(re.findall(r"[\d.,]+ (ns|us|ms|s)\b", row.partition("g5")[0]))) == 1
    notes = re.findall(r'<p class="soft">(In every row: .*?)</p>', table)
    assert len(notes) == 1
    assert "boundary compute" in notes[0]
    assert ", match 100 %" in notes[0]
    assert ">match</button>" not in table


def test_sparse_percentiles_are_left_out_and_the_remedy_is_told():
    cells = [make.cell(), make.cell(backend="openvino"), make.cell(backend="onnxruntime")]
    made = report.render([make.run(cells, samples=40)], "html")
    assert "Left out, for too few samples: p99 (0 of 3 rows)" in made
    assert "policy.duration_s" in made
    assert ">p99</button>" not in made
    assert ">p90</button>" in made


def test_html_escapes_every_untrusted_string():
    made = report.render([hostile()], "html")
    tags = Tags(made).seen
    assert not [t for t, a in tags if t == "img" or "onerror" in a]
    # data and program, no third kind of script
    assert [a.get("type") for t, a in tags if t == "script"] == ["application/json", None, None]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', made, re.DOTALL)
    assert HOSTILE.split("\u2028")[0] in json.loads(data[1])["series"][1]["name"]
    assert "\u2028" not in data[1]
    assert "{{7*7}}" in made  # not evaluated


def test_markdown_escapes_every_untrusted_string():
    made = report.render([hostile()], "md")
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", made, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert "<img" not in outside
    assert "[x](y)" not in outside
    widths = {}
    for line in outside.splitlines():
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line))
            widths.setdefault(cells, []).append(line)
    rules = [len(line.split("|")) - 1 for line in outside.splitlines() if line.startswith("|--")]
    assert set(widths) == set(rules)


def test_markdown_fences_are_longer_than_any_run_of_backticks_in_them():
    file = make.run([make.cell()], samples=5, command=["gpubench", "run", "`" * 5])
    made = report.render([file], "md")
    assert re.search(r"^`{6}text\n.*`{5}.*\n`{6}$", made, re.MULTILINE)
    assert markdown.escape("a $x^2$ b") == r"a \$x^2\$ b"


def test_terminal_output_does_not_interpret_markup():
    file = make.run([make.cell(backend="[bold red]x[/]")], samples=10)
    assert "[bold red]x[/]" in plain(terminal.summary([file]))
    assert "[bold red]x[/]" in report.render([file], "text")


def test_flagged_rows_look_flagged_and_flags_are_explained(page_of_run):
    assert '<a class="flag" href="#flag-DRIFT">DRIFT</a>' in page_of_run
    assert re.search(r'id="flag-DRIFT"><dt>.*?<dd>' + re.escape(FLAGS["DRIFT"]), page_of_run)
    assert '<a class="flag bad"' in page_of_run


def test_every_row_carries_the_command_that_runs_its_cell_again(run, page_of_run):
    key = run.records[0].cell.key
    assert f'data-copy="gpubench run quick --cell {key}"' in page_of_run


def test_command_keeps_the_run_and_drops_where_it_went():
    words = ["/x/bin/gpubench", "run", "a b.toml", "-o", "out", "--batch-size", "1,8", "--resume",
             "--output=y"]  # fmt: skip
    header = make.header([], command=words)
    assert formatting.command(header, "k") == "gpubench run 'a b.toml' --batch-size 1,8 --cell k"
    assert formatting.command(make.header([], command=["x"]), "k") == "gpubench run quick --cell k"
    fleet = make.header([], command=["gpubench", "fleet", "mine.toml", "--price", "a=1", "-o", "x"])
    assert formatting.command(fleet, "k") == "gpubench fleet mine.toml --price a=1 --cell k"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["quick", "-oout"], "quick"),
        (["quick", "-qoout"], "quick -q"),
        (["quick", "-qo", "out", "--quiet"], "quick -q --quiet"),
        (["quick", "--require", "openvino", "--require=tensorrt"], "quick"),
        (["quick", "--github", "-o", "out"], "quick --github"),
        (["--cell", "a", "quick", "--cell=b"], "quick"),
        (["/d/KEY.toml", "--weights", "/d/KEY/w.pt"], "/d/KEY.toml --weights /d/KEY/w.pt"),
        (["quick", "--images", "--output", "--model=-o"], "quick --images --output --model=-o"),
    ],
)  # fmt: skip
def test_command_reads_the_run_as_click_does(words, kept):
    header = make.header([], command=["gpubench", "run", *words])
    assert formatting.command(header, "k") == f"gpubench run {kept} --cell k"


def test_command_puts_options_before_the_end_of_options():
    header = make.header([], command=["gpubench", "run", "-q", "--", "-odd.toml"])
    assert formatting.command(header, "k") == "gpubench run -q --cell k -- -odd.toml"


def test_resume_keeps_everything_but_where_the_results_went():
    words = ["/x/gpubench", "run", "quick", "--cell", "a", "--require=x", "-qo", "old", "--resume"]
    header = make.header([], command=words)
    wanted = "gpubench run quick --cell a --require=x -q --resume -o 'a b'"
    assert formatting.resume(header, "a b") == wanted
    lost = formatting.resume(make.header([], command=["x"]), "out")
    assert lost == "gpubench run quick --resume -o out"


def test_the_command_of_a_row_leaves_paths_alone_that_hold_its_placeholder():
    file = make.run([make.cell()], samples=10, command=["gpubench", "run", "/data/KEY.toml"])
    made = report.render([file], "html")
    assert f'data-copy="gpubench run /data/KEY.toml --cell {make.cell().key}"' in made


def test_headline_names_the_winner_and_whom_it_cannot_be_told_from():
    cells = [make.cell(backend=b) for b in ("torch-eager", "openvino", "onnxruntime")]
    speed = {"torch-eager": 1.0, "openvino": 2.3, "onnxruntime": 2.3}
    base = make.run(cells, samples=40)
    even = [
        replace(
            r,
            replicas=[
                replace(
                    r.replicas[0],
                    durations_ns=[int(1e7 / speed[r.cell.backend] * (1 + 0.01 * r.repeat))] * 40,
                )
            ],
        )
        for r in base.records
    ]
    found = headline.winners(summarise([replace(base, records=even)]))
    assert [w.measure for w in found] == ["throughput", "latency"]  # no throughput scenario: both
    won = found[1]
    assert won.summary.cell.backend == "openvino"
    assert won.rivals == ["onnxruntime"]


def test_headline_never_crowns_wrong_answers(run):
    for won in headline.winners(summarise([run])):
        assert won.summary.ranked
    wrong = [replace(r, status="failed", kind="parity") for r in run.records if r.replicas]
    told = answers.told([run], summarise([replace(run, records=wrong)]), [])
    assert told[0] == ("fastest", ["No cell gave a result that can be ranked."], False)


def test_pareto_front_is_the_upper_left_of_the_ranked():
    s = summarise([make.run([make.cell()], samples=5)])[0]
    values = [
        (1, 10, "clean"),
        (2, 9, "clean"),
        (2, 30, "flagged"),
        (3, 99, "unranked"),
        (4, 40, "clean"),
    ]
    points = [{"cell": s, "replicas": 1, "x": x, "y": y, "state": state} for x, y, state in values]
    overview.pareto(points)
    assert [p["front"] for p in points] == [True, False, True, False, True]


def test_charts_hold_only_ranked_fronts_and_never_mix_groups(run):
    other = make.run(
        [make.cell(model="resnet50", scenario=x) for x in ("latency", "throughput")],
        run_id="b",
        samples=5,
    )
    drawn = overview.build(summarise([run, other]))
    assert len(drawn["groups"]) == 2
    by = {c["id"]: c for c in drawn["charts"]}
    assert set(by) == {"throughput", "tradeoff", "scaling"}
    front = [p for p in by["tradeoff"]["points"] if p["front"]]
    assert front
    assert all(p["state"] != "unranked" for p in front)
    assert all(p["series"] != "openvino bf16" or p["replicas"] > 1 for p in front)
    kinds = {p["what"].partition(":")[0] for p in by["scaling"]["points"]}
    assert kinds == {"weak"}  # no strong one has three numbers of replicas


def test_chart_specifications_are_valid_vega_lite(run):
    import altair
    import vl_convert

    for chart in overview.build(summarise([run]))["charts"]:
        spec = chart["spec"] | {"data": {"name": "points", "values": chart["points"]}, "width": 400}
        altair.Chart.from_dict(spec, validate=True)
        assert "<svg" in vl_convert.vegalite_to_svg(spec)


def test_csv_is_tidy_and_complete(run):
    rows = list(csv.DictReader(io.StringIO(report.render([run], "csv"))))
    assert {r["cell"] for r in rows} == {c.key for c in run.header.planned}
    assert len({(r["run"], r["cell"], r["metric"]) for r in rows}) == len(rows)
    p50 = next(r for r in rows if r["metric"] == "latency p50" and r["status"] == "ok")
    assert float(p50["low"]) < float(p50["value"]) < float(p50["high"])
    assert p50["unit"] == "ns"


def test_csv_has_the_median_of_what_opening_cost():
    file = make.run([make.cell()], samples=5, repeats=2)
    records = [replace(r, replicas=[replace(r.replicas[0], open_ns=ns)])
               for r, ns in zip(file.records, (100, 300), strict=True)]  # fmt: skip
    made = report.render([replace(file, records=records)], "csv")
    found = {r["metric"]: r["value"] for r in csv.DictReader(io.StringIO(made))}
    assert float(found["open"]) == 200  # as in the table of cold starts


def test_csv_says_how_pictures_became_inputs():
    file = make.run([make.cell()], samples=5, repeats=1)
    [record] = file.records
    told = replace(record, parity=replace(record.parity, preprocessing="32x32 (assumed)"))
    rows = csv.DictReader(io.StringIO(report.render([replace(file, records=[told])], "csv")))
    assert {row["preprocessing"] for row in rows} == {"32x32 (assumed)"}


def test_csv_defuses_formulas():
    file = make.run([make.cell(backend="=cmd()")], samples=5)
    assert "'=cmd()" in report.render([file], "csv")


def test_csv_defuses_formulas_in_every_text():
    evil = "=1+1"
    dead = Record(cell=make.cell(backend="x"), repeat=0, status="failed", kind=evil, reason=evil,
                  remedy=evil)  # fmt: skip
    file = make.run([make.cell()], samples=5)
    records = [replace(r, flags=[evil], prepare_ns={}) for r in file.records]
    rows = csv.reader(io.StringIO(report.render([replace(file, records=[*records, dead])], "csv")))
    found = [value for row in rows for value in row]
    assert found.count(f"'{evil}") >= 3
    assert not [v for v in found if v.startswith(("=", "+", "@"))]


def test_csv_says_why_and_what_to_do(run):
    rows = list(csv.DictReader(io.StringIO(report.render([run], "csv"))))
    skips = [r for r in rows if r["status"] == "unavailable"]
    assert {(r["reason"], r["remedy"]) for r in skips} == {
        ("no CUDA device", "run on a machine with an NVIDIA GPU")
    }
    crashed = {r["reason"] for r in rows if "1 of 3 repeats failed" in r["flags"]}
    assert crashed == {"worker 1 ended by signal 11"}
    memory = {float(r["value"]) for r in rows if r["metric"] == "host memory"}
    assert memory == {400.0 * 2**20, 800.0 * 2**20, 1600.0 * 2**20}


def test_json_reads_back(run):
    made = json.loads(report.render([run], "json"))
    assert made["runs"][0]["header"]["run_id"] == run.header.run_id
    latency = made["tables"][0]
    assert [c["name"] for c in latency["columns"]][:2] == ["backend", "precision"]
    assert latency["rows"][0][4]["n"] == 3
    both = json.loads(json_report.comparisons(compare(run, run)))
    assert both["exit_code"] == 4  # failed cells are holes
    assert both["comparisons"][0]["verdict"]
    assert both["note"] == CAVEAT


def test_summary_has_a_row_per_timed_cell_and_groups_problems(run):
    made = plain(terminal.summary([run]), 200)
    timed = [s for s in summarise([run]) if s.timed]
    table = made.partition("\n\n")[0].splitlines()
    assert sum(f"  {s.cell.backend} " in line for s in timed[:1] for line in table) > 1
    names = {s.cell.backend for s in timed}
    rows = [line for line in table if line.startswith(tuple(f"  {name}" for name in names))]
    assert len(rows) == len(timed)
    line = "tensorrt: unavailable (2 cells): no CUDA device -> run on a machine with an NVIDIA GPU"
    assert line in made
    assert "failed: parity" in made
    assert "CPU-BUSY (12 cells): other processes used" in made


@pytest.mark.parametrize(
    ("value", "unit", "wanted"),
    [
        (Estimate(value=11.06e6, low=10.94e6, high=11.19e6, n=3), "ns", "11.1 ms [10.9, 11.2]"),
        (Estimate(value=999_900.0, low=999e3, high=1001e3), "ns", "999.9 us [999.0, 1,001.0]"),
        (Estimate(value=1759.3, low=1739.0, high=1779.8), "images/s", "1,760 [1,740, 1,780]"),
        (Estimate(value=1759.3, low=1500.0, high=2100.0), "images/s", "1,800 [1,500, 2,100]"),
        (Estimate(value=0.955, low=0.944, high=0.966), "fraction", "95.5 % [94.4, 96.6]"),
        (Estimate(value=5e6, n=1, why="1 repeat"), "ns", "5.00 ms (1 repeat)"),
        (
            Estimate(value=621.3, span=(133.0, 2897.0), n=3, why="no usable interval"),
            "images/s",
            "620 (no usable interval: repeats 130 to 2,900)",
        ),
        (Estimate(why="n too small: 3 of 36"), "ns", "n too small"),
        (None, "ns", "–"),
        (900_000_000, "ns", "900 ms"),
        (839_000_000, "bytes", "800 MiB"),
        (1980.0, "MHz", "1,980 MHz"),
        (12, "count", "12"),
        (0.0, "ns", "0.00 ns"),
        (6.42e-6, "", "6.4e-06"),
        ([], "flags", "–"),
    ],
)
def test_digits_follow_the_measured_precision(value, unit, wanted):
    assert formatting.full(value, unit) == wanted


def test_one_repeat_is_said_once_where_all_have_one():
    cells = [make.cell(), make.cell(scenario="throughput")]
    made = plain(terminal.summary([make.run(cells, repeats=1, samples=50)]))
    assert made.partition("fastest")[0].count("1 repeat") == 1
    assert "images/s (1 repeat)." in made
    assert "have no intervals" in made
    made = report.render([make.run(cells, repeats=1, samples=50)], "text")
    latency = made.partition("Latency per batch")[2].partition("Throughput")[0]
    assert latency.count("1 repeat") == 1
    mixed = make.run(cells, samples=50)
    left = [r for r in mixed.records if r.repeat == 0 or r.cell == cells[1]]
    made = plain(terminal.summary([replace(mixed, records=left)]))
    assert "ms (1 repeat)" in made
    assert "half the interval" in made
    assert "±?" not in made


def test_what_was_invalidated_and_what_is_wide_is_shown_and_explained():
    policy = Policy(repeats=3, max_repeats=8)
    file = make.run([make.cell()], repeats=4, launch=0.2, samples=40, policy=policy)
    file = replace(file, records=[replace(r, invalidated=1) for r in file.records])
    assert "heat" in formatting.meaning("4 attempts invalidated")
    for kind in ("html", "md", "csv"):
        made = report.render([file], kind)
        assert "4 attempts invalidated" in made
        assert WIDE in made
    assert "4 attempts invalidated" in plain(terminal.summary([file]), 300)
    assert f"<dd>{formatting.meaning(WIDE)}" in report.render([file], "html")


def test_reports_say_where_the_raw_records_are(run):
    for kind in ("html", "md", "text", "json"):
        made = report.render([run], kind).replace("\\", "")
        assert run.path in made


def test_telemetry_is_in_the_page_and_in_the_csv():
    file = make.run([make.cell()], samples=40)
    assert "SM clock min" not in report.render([file], "html")
    file = replace(file, records=[replace(r, telemetry={"gpus": [make.GPU]}) for r in file.records])
    made = report.render([file], "html")
    for value in ("1,200 MHz", "1,980 MHz", "61.0 °C", "402 W", "3.00 GiB", "400 MiB"):
        assert value in made
    metrics = {r["metric"]: r for r in csv.DictReader(io.StringIO(report.render([file], "csv")))}
    assert (metrics["peak power"]["value"], metrics["peak power"]["unit"]) == ("402.0", "W")
    assert metrics["temperature"]["value"] == "61.0"


def test_energy_per_image_is_in_the_page_and_in_the_csv():
    energy = {"joules": 6.0, "seconds": 6.0, "source": "rapl", "idle_watts": 0.25}
    file = make.run([make.cell()], samples=40)
    file = replace(file, records=[replace(r, telemetry={"energy": energy}) for r in file.records])
    made = report.render([file], "html")
    assert "energy per image" in made
    assert " mJ" in made
    found = {r["metric"]: r for r in csv.DictReader(io.StringIO(report.render([file], "csv")))}
    whole, above = found["energy per image"], found["energy per image above idle"]
    assert (whole["unit"], above["unit"]) == ("J", "J")
    assert float(above["value"]) == pytest.approx(0.75 * float(whole["value"]))
    assert float(whole["low"]) < float(whole["value"]) < float(whole["high"])


def test_a_run_with_a_cut_off_line_says_so():
    noted = replace(make.run([make.cell()], samples=5), notes=["line 9 was cut off"])
    for kind in ("html", "md", "text"):
        assert "line 9 was cut off" in report.render([noted], kind)
