"""What other tools read: by their own programs where these can be run, else by their schemas."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from statistics import fmean, median
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from gpubench import plugins
from gpubench.cli.main import cli
from gpubench.errors import InputError, RecordError
from gpubench.records.reader import read_all
from gpubench.records.record import Arm, Record, RecordFile
from gpubench.records.writer import Writer
from gpubench.report import exports, frames
from gpubench.report.exports import bencher, github_action_benchmark, naming, repeats
from gpubench.run.results import History
from gpubench.suite.types import Cell, Rule
from tests.report import make, make_pairs

SCHEMAS = Path(__file__).parents[2] / "data/exports"
CELLS = make.grid(backends=("torch-eager", "onnxruntime"), batches=(1, 4), replicas=(1, 2))
SMALLER, BIGGER = github_action_benchmark.SMALLER, github_action_benchmark.BIGGER


def load(content: bytes, schema: str) -> Any:
    document = json.loads(content)
    rules = json.loads((SCHEMAS / f"{schema}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(rules)
    jsonschema.validate(document, rules, jsonschema.Draft202012Validator)
    return document


def arms(effect: float = 0.0) -> list[RecordFile]:
    """An interleaved A/B of two cells, with as many pairs as the gate asks for."""
    return list(make_pairs.arms(CELLS[:2], None, effect))


def store(file: RecordFile, directory: Path) -> Path:
    with Writer(directory, file.header) as writer:
        for record in file.records:
            writer.append(record)
    return directory


# ------------------------------------------------------------------------------ which files


def test_paths_may_be_runs_files_and_both_arms_of_an_ab(tmp_path: Path) -> None:
    run = store(make.run(CELLS[:1]), tmp_path / "run")
    for file, arm in zip(arms(), get_args(Arm), strict=True):
        store(file, tmp_path / "ab" / arm)
    found = read_all([run, run / "records.jsonl", tmp_path / "ab", tmp_path / "ab/baseline"])
    sides = [f.header.pairing.arm if f.header.pairing else "" for f in found]
    assert sides == ["", "", "baseline", "candidate", "baseline"]


def test_a_path_without_records_and_half_an_ab_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no record file there"):
        read_all([tmp_path])
    store(arms()[0], tmp_path / "baseline")
    with pytest.raises(RecordError, match="candidate: no record file there"):
        read_all([tmp_path])


@pytest.mark.parametrize("form", exports.HISTORIES)
def test_a_history_holds_the_candidate_unless_the_baseline_is_asked_for(form: str) -> None:
    both = arms(1.0)
    _, candidate = both
    assert exports.export(both, form) == exports.export([candidate], form)
    assert exports.export(both[:1], form) != exports.export([candidate], form)


@pytest.mark.parametrize("form", exports.HISTORIES)
def test_a_history_of_nothing_is_refused(form: str) -> None:
    broken = [Record(cell=c, repeat=0, status="failed", kind="crash") for c in CELLS[:1]]
    file = RecordFile("x/records.jsonl", make.header(CELLS[:1]), broken)
    with pytest.raises(InputError, match=r"x/records\.jsonl: no cell has a result"):
        exports.export([file], form)


def test_openmetrics_is_what_its_grammar_says_in_plain_numbers_of_four_digits() -> None:
    file = make.realistic(samples=40)
    *lines, end = exports.export([file], "openmetrics")[""].decode().splitlines()
    assert end == "# EOF"
    sample = re.compile(r'(\w+)\{cell="((?:[^"\\\n]|\\["\\n])+)"\} (\d+(?:\.\d+)?)')
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        if meta := re.fullmatch(r"# (TYPE|UNIT|HELP) (\w+) \S.*", line):
            metric = found.setdefault(meta[2], {})
            assert metric == {}  # before its samples
        else:
            parts = sample.fullmatch(line)
            assert parts, line
            found[parts[1]][parts[2]] = float(parts[3])
    seconds, rates = found["gpubench_batch_seconds"], found["gpubench_images_per_second"]
    for name, s in naming.named([file], sound=True).items():
        own = naming.measures(s)
        assert rates[name] == pytest.approx(own["throughput"].value, rel=1e-3)
        if "latency" in own:
            assert seconds[name] == pytest.approx((own["latency"].value or 0) / 1e9, rel=1e-3)
    assert max(rates.values()) > 1000
    assert exports.left_out([file], "openmetrics") == exports.left_out([file], "bencher")


def test_bad_requests_are_named() -> None:
    with pytest.raises(InputError, match="'xls'; choose one of pytest-benchmark"):
        exports.export([make.run(CELLS[:1])], "xls")
    with pytest.raises(InputError, match="no record file"):
        exports.export([], "csv")


def test_what_is_left_out_of_a_history_is_listed() -> None:
    file = make.realistic(samples=40)
    out = exports.left_out([file], "bencher")
    assert len(out) + len(naming.named([file])) == len(file.header.planned)
    assert "resnet18 cpu onnxruntime fp32 b128 x1 latency: missing" in out
    assert "resnet18 cpu openvino bf16 b1 x1 latency: failed: parity" in out
    assert exports.left_out([file], "junit") == []


def test_names_are_unique_and_do_not_depend_on_their_neighbours() -> None:
    def cell(**changes: Any) -> Cell:
        return make.cell(**changes)

    alone = cell(model="nets/resnet18.onnx", device="cuda", backend="onnxruntime")
    twins = [cell(cores=1), cell(cores=2)]
    names = list(naming.named([make.run([alone, *twins])]))
    first = "resnet18.onnx cuda onnxruntime fp32 b1 x1 latency"
    twin = "resnet18 cpu torch-eager fp32 b1 x1 latency"
    assert names == [first, *(f"{twin} [{c.key}]" for c in twins)]
    two = [make.run([alone], run_id="a"), make.run([alone], run_id="b")]
    assert list(naming.named(two)) == [f"{first} [{alone.key}] @ {run}" for run in "ab"]


def test_documents_are_saved_or_printed(tmp_path: Path) -> None:
    file = [make.run(CELLS)]
    two = exports.export(file, "github-action-benchmark")
    one = exports.export(file, "bencher")
    assert exports.text(one, "bencher") == one[""].decode()
    with pytest.raises(InputError, match="is 2 files: name a directory for them with -o"):
        exports.text(two, "github-action-benchmark")
    with pytest.raises(InputError, match="parquet is not text"):
        exports.text({"": b"PAR1"}, "parquet")
    run, file = str(store(file[0], tmp_path / "run")), tmp_path / "new/b.json"
    for form, to in (("bencher", file), ("github-action-benchmark", tmp_path / "gab")):
        done = CliRunner().invoke(cli, ["export", run, "--format", form, "-o", str(to)])
        assert (done.exit_code, done.output) == (0, "")
    assert file.read_bytes() == one[""]
    assert {path.name: path.read_bytes() for path in (tmp_path / "gab").iterdir()} == two
    done = CliRunner().invoke(cli, ["export", run, "--format", "bencher", "-o", "-"])
    assert (done.exit_code, done.output) == (0, one[""].decode())
    with pytest.raises(InputError, match="cannot be written"):
        cli.main(["export", run, "-f", "bencher", "-o", str(tmp_path)], standalone_mode=False)


# ------------------------------------------------------------------------------ pytest-benchmark


def test_pytest_benchmark_document_has_its_shape_and_our_repeats() -> None:
    file = make.run(CELLS, repeats=4)
    found = load(exports.export([file], "pytest-benchmark")[""], "pytest-benchmark")["benchmarks"]
    summaries = naming.tests([file])
    assert [b["fullname"] for b in found] == list(summaries)
    for b in found:
        s = summaries[b["fullname"]]
        latency = s.cell.scenario == "latency"
        expected = [v / 1e9 if latency else 1 / v for v in s.values.values()]
        assert b["stats"]["data"] == pytest.approx(expected)
        assert b["stats"]["mean"] == pytest.approx(fmean(expected))
        assert b["stats"]["rounds"] == 4
        info = b["extra_info"]
        assert info["round"].startswith(
            f"{'median time per batch' if latency else 'time per image'} "
        )
        assert info["cell"] == s.key
        low, high = info["interval_s"]
        assert low < b["stats"]["median"] < high
        mean = s.value.value
        assert info["value_s"] == pytest.approx(mean / 1e9 if latency else 1 / mean)
        assert info["parity"]["passed"]
        if not latency:
            assert b["stats"]["ops"] == pytest.approx(info["images_per_s"], rel=0.01)


def test_exports_tell_shared_devices_and_jobs_apart() -> None:
    shared = [{}, {"replicas_per_device": 2}, {"dispatch": "static"}, {"dispatch": "dynamic"}]
    cells = [make.cell(replicas=2, scenario="throughput", **axes) for axes in shared]
    made = make.run(cells, samples=30)
    found = json.loads(exports.export([made], "pytest-benchmark")[""])["benchmarks"]
    assert len({b["name"] for b in found}) == 4
    assert [b["params"]["dispatch"] for b in found] == [c.dispatch for c in cells]
    assert [b["params"]["replicas_per_device"] for b in found] == [1, 2, 1, 1]
    frame = frames.frame([made])
    assert set(zip(frame["dispatch"], frame["replicas_per_device"], strict=True)) == {
        (c.dispatch, c.replicas_per_device) for c in cells
    }


def test_pytest_benchmark_holds_one_machine() -> None:
    here, there = (make.run(CELLS[:1], run_id=name, fingerprint=name) for name in "ab")
    with pytest.raises(InputError, match="one machine"):
        exports.export([here, there], "pytest-benchmark")
    assert exports.export([here, make.run(CELLS[:1], fingerprint="a")], "pytest-benchmark")


def test_pytest_benchmarks_own_command_compares_two_exports(tmp_path: Path) -> None:
    for name, factor in (("0001_old", 1.0), ("0002_new", 1.5)):
        made = exports.export([make.run(CELLS[:2], factor=factor)], "pytest-benchmark")
        (tmp_path / f"{name}.json").write_bytes(made[""])
    command = Path(sys.executable).parent / "pytest-benchmark"
    done = subprocess.run(
        [command, "--storage", tmp_path, "compare", "0001_old.json", "0002_new.json",
         "--between=mean,ops", "--group-by=group,param:batch_size", "--csv", "out.csv"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "Generated csv: out.csv"  # and no "Failed to load"
    changes = [float(x) for x in re.findall(r"([+-]\d+\.\d)%", done.stdout)]
    assert changes == pytest.approx([50.0, -33.3] * 2, abs=0.2)
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4
    assert {row["param:backend"] for row in rows} == {"torch-eager"}


def test_pytest_compares_its_own_benchmarks_with_an_export(tmp_path: Path) -> None:
    made = json.loads(exports.export([make.run(CELLS[:1])], "pytest-benchmark")[""])
    test = 'def test_it(benchmark):\n    benchmark.fullname = "{}"\n    benchmark(lambda: 1)\n'
    (tmp_path / "test_it.py").write_text(test.format(made["benchmarks"][0]["fullname"]))
    (tmp_path / "0001_stored.json").write_text(json.dumps(made), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--benchmark-max-time=0.01",
         "--benchmark-storage", tmp_path, "--benchmark-compare=0001", "test_it.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Comparing against benchmarks from: 0001_stored.json" in done.stderr
    assert "(0001_stored)" in done.stdout


# ------------------------------------------------------------------------------ other histories


def test_github_action_benchmark_has_a_file_for_each_direction() -> None:
    file = make.run(CELLS)
    made = exports.export([file], "github-action-benchmark")
    assert set(made) == {SMALLER, BIGGER}
    by_name = naming.named([file])
    for name, unit, scenarios in (
        (SMALLER, "ms", {"latency"}),
        (BIGGER, "images/s", {"latency", "throughput"}),
    ):
        entries = load(made[name], "github-action-benchmark")
        assert len(entries) == sum(c.scenario in scenarios for c in CELLS)
        for entry in entries:
            s = by_name[entry["name"]]
            assert entry["unit"] == unit
            assert s.cell.scenario in scenarios
            own = s.p50.value / 1e6 if unit == "ms" else s.throughput.value
            assert entry["value"] == pytest.approx(own)
            half = float(entry["range"].strip("± %"))
            value = s.p50 if unit == "ms" else s.throughput
            assert half == pytest.approx(100 * value.relative_half_width, rel=0.06)
            assert f"cell: {s.key}" in entry["extra"]
            assert "95 % interval: " in entry["extra"]


def test_github_action_benchmark_without_intervals_and_with_flags() -> None:
    file = make.run(CELLS[:1], repeats=1)
    records = [msgspec.structs.replace(r, flags=["DRIFT"]) for r in file.records]
    made = exports.export(
        [msgspec.structs.replace(file, records=records)], "github-action-benchmark"
    )
    (entry,) = load(made[SMALLER], "github-action-benchmark")
    assert "range" not in entry
    assert entry["extra"].endswith("flags: DRIFT")


def test_a_suite_that_gains_values_of_its_axes_breaks_no_history() -> None:
    latency = [c for c in CELLS if c.scenario == "latency"]
    for form in ("pytest-benchmark", "github-action-benchmark", "bencher"):
        before, after = (names(form, cells) for cells in (latency[:1], CELLS))
        assert before < after
    throughput = [c for c in CELLS if c.scenario == "throughput"]
    assert set(exports.export([make.run(throughput)], "github-action-benchmark")) == {BIGGER}


def names(form: str, cells: list[Cell]) -> set[tuple[str, ...]]:
    """What the tool that reads it tells its histories apart by."""
    found = {name: json.loads(c) for name, c in exports.export([make.run(cells)], form).items()}
    if form == "bencher":
        return {(name, measure) for name, measures in found[""].items() for measure in measures}
    if form == "pytest-benchmark":
        return {(b["fullname"],) for b in found[""]["benchmarks"]}
    return {(file, e["name"]) for file, entries in found.items() for e in entries}


def test_bencher_has_both_measures_with_bounds() -> None:
    file = make.run(CELLS)
    document = load(bencher.render([file]), "bencher")
    for name, s in naming.named([file]).items():
        metrics = document[name]
        own = {"latency": s.p50, "throughput": s.throughput}
        own = own if s.cell.scenario == "latency" else {"throughput": s.throughput}
        assert metrics == {
            name: {"value": e.value, "lower_value": e.low, "upper_value": e.high}
            for name, e in own.items()
        }
    latency = load(bencher.render([make.run(CELLS[:1], repeats=1)]), "bencher")
    ((metrics,),) = [latency.values()]
    assert list(metrics) == ["latency", "throughput"]
    assert list(metrics["latency"]) == ["value"]


@pytest.mark.parametrize("flag", ["FROZEN", "THROTTLED", "DRIFT"])
def test_no_format_shows_invalid_repeats_as_if_they_were_none(flag: str) -> None:
    file = make.run(CELLS[:2])
    spoilt = file.records[0]
    file = replace(file, records=[
        replace(r, flags=[flag]) if r.cell == spoilt.cell and r.repeat else r for r in file.records
    ])  # fmt: skip
    kept = load(bencher.render([file]), "bencher")
    for form in exports.FORMATS:
        made = exports.export([file], form)
        if form != "parquet" and (form not in exports.SOUND or flag == "DRIFT"):
            assert (flag in str(made)) == (form not in exports.SOUND)
    [bad] = {naming.title(c) for c in CELLS[:2] if c.key == spoilt.cell.key}
    assert (bad in kept) == (flag == "DRIFT")
    assert (exports.left_out([file], "bencher") == [f"{bad}: {flag}"]) == (flag != "DRIFT")


# ------------------------------------------------------------------------------ repeats


def test_csv_has_a_row_for_every_repeat_with_values_of_its_samples() -> None:
    file = make.run(CELLS, repeats=3)
    rows = list(csv.DictReader(io.StringIO(exports.export([file], "csv")[""].decode())))
    assert len(rows) == 3 * len(CELLS)
    assert list(rows[0]) == list(frames.COLUMNS)
    records = {(r.cell.key, str(r.repeat)): r for r in file.records}
    for row in rows:
        record = records[row["cell"], row["repeat"]]
        assert float(row["latency_median_ns"]) == record.median_ns()
        assert float(row["images_per_s"]) == record.images_per_s()
        assert row["ranked"] == "True"
        if record.cell.replicas == 1:
            (s,) = record.replicas
            every = [ns / s.iterations for ns in s.durations_ns]
            assert int(row["samples"]) == len(every) == 200
            assert float(row["latency_max_ns"]) == max(every)
            assert float(row["latency_median_ns"]) == median(every)
            assert int(row["iterations_per_sample"]) == s.iterations


def test_csv_has_the_energy_and_the_memory_of_every_repeat() -> None:
    energy = {"joules": 600.0, "seconds": 6.0, "source": "rapl", "idle_watts": 25.0}
    file = make.run(CELLS[:1], repeats=1)
    [plain] = csv.DictReader(io.StringIO(repeats.csv([file]).decode()))
    assert (plain["joules_per_image"], plain["joules_per_image_above_idle"]) == ("", "")
    [record] = file.records
    file = replace(file, records=[replace(record, telemetry={"energy": energy})])
    [row] = csv.DictReader(io.StringIO(repeats.csv([file]).decode()))
    rate = record.images_per_s()
    assert rate
    assert float(row["joules_per_image"]) == pytest.approx(100 / rate)
    assert float(row["joules_per_image_above_idle"]) == pytest.approx(75 / rate)
    assert int(row["peak_bytes"]) == record.peak_bytes() == 400 << 20


def test_csv_keeps_both_arms_and_everything_that_went_wrong() -> None:
    rows = list(csv.DictReader(io.StringIO(repeats.csv(arms(0.5)).decode())))
    assert {(r["session"], r["arm"]) for r in rows} == {("ab-session", a) for a in get_args(Arm)}
    assert {r["order"] for r in rows} == {"ABBA", "BAAB"}
    assert {int(r["samples"]) / int(r["replicas"]) for r in rows} == {22}  # of both turns
    rows = list(csv.DictReader(io.StringIO(repeats.csv([make.realistic(samples=40)]).decode())))
    counts = {status: [r for r in rows if r["status"] == status] for status in
              ("failed", "missing", "unavailable", "unsupported")}  # fmt: skip
    assert {k: len(v) for k, v in counts.items()} == {
        "failed": 40, "missing": 1, "unavailable": 6, "unsupported": 3,
    }  # fmt: skip
    assert {r["ranked"] for v in counts.values() for r in v} == {"False"}
    wrong = [r for r in counts["failed"] if r["kind"] == "parity"]
    assert {r["parity_passed"] for r in wrong} == {"False"}
    assert all(r["latency_median_ns"] for r in wrong)  # timings are kept


def test_csv_is_harmless_in_a_spreadsheet() -> None:
    c = make.cell(options={"x": 1})
    bad = Record(cell=c, repeat=0, status="failed", kind="error", reason='=HYPERLINK("x"),1\n2')
    text = repeats.csv([RecordFile("r", make.header([c]), [bad])]).decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["reason"] == '\'=HYPERLINK("x"),1\n2'
    assert row["options"] == '{"x":1}'


def test_parquet_is_the_same_frame_with_types() -> None:
    pytest.importorskip("pyarrow", reason="the extra gpubench[parquet] is not installed")
    import pandas as pd

    files = [*arms(), make.realistic(samples=40)]
    stored = pd.read_parquet(io.BytesIO(exports.export(files, "parquet")[""]))
    frame = frames.frame(files)
    assert stored.equals(frame)
    assert {name: str(kind) for name, kind in stored.dtypes.items()} == frames.COLUMNS
    rows = list(csv.DictReader(io.StringIO(repeats.csv(files).decode())))
    assert [int(r["repeat"]) for r in rows if r["repeat"]] == frame["repeat"].dropna().tolist()
    slow = frame[frame["ranked"]].groupby("arm")["latency_median_ns"].median()
    assert slow.index.tolist() == list(get_args(Arm))


@pytest.mark.parametrize(("package", "found", "says"), [
    ("pyarrow", None, r"^parquet: pyarrow is not installed; pip install 'gpubench\[parquet\]'$"),
    ("pandas", None, r"^parquet: pandas is not installed; pip install 'gpubench\[parquet\]'$"),
    ("pandas", "1.5.3", r"^parquet: pandas 1.5.3 .* gpubench needs >=2.2; pip install 'pandas>=2"),
])  # fmt: skip
def test_without_what_writes_parquet_it_says_what_to_install(
    package: str, found: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name != package:
            return "99"
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(plugins, "version", version)
    with pytest.raises(InputError, match=says):
        exports.export([make.run(CELLS[:1])], "parquet")
    if package == "pandas":
        with pytest.raises(InputError, match=r"^runs as frames: pandas .*; pip install"):
            frames.frame([make.run(CELLS[:1])])
        with pytest.raises(InputError, match=r"^a history as a frame: pandas .*; pip install"):
            History([], Rule(), []).frame()


@pytest.mark.parametrize("form", [f for f in exports.FORMATS if f != "parquet"])
def test_exports_are_deterministic(form: str) -> None:
    first, second = (exports.export([make.realistic(samples=40)], form) for _ in range(2))
    assert first == second
