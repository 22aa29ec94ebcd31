"""`gpubench.read` and `gpubench.tables`: what a notebook gets."""

from __future__ import annotations

import doctest
import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from msgspec.structs import replace

import gpubench
from gpubench.errors import RecordError
from gpubench.records.record import RECORDS, RecordFile, encode
from gpubench.report import exports, frames
from tests.report import make, make_pairs, make_pipelines

REFERENCE = Path(__file__).parents[2] / "reports" / "reference" / "quick-epyc-2core"


def write(file: RecordFile, folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = [encode("header", file.header), *(encode("record", r) for r in file.records)]
    (folder / RECORDS).write_bytes(b"".join(lines))
    return folder


def test_importing_gpubench_imports_neither_pandas_nor_torch() -> None:
    code = (
        "import sys, gpubench; print([m for m in ('pandas', 'numpy', 'torch', 'msgspec', 'rich')"
        " if m in sys.modules]); gpubench.read, gpubench.tables; print('torch' in sys.modules, "
        "'pandas' in sys.modules); assert {'load', 'read', 'tables'} <= set(dir(gpubench))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False False"]
    with pytest.raises(AttributeError, match="'gpubench' has no attribute 'reed'"):
        gpubench.reed  # noqa: B018


def test_a_row_per_repeat_says_what_its_record_says(tmp_path: Path) -> None:
    cells = [make.cell(scenario=s, options=o) for s in ("latency", "throughput")
             for o in ({}, {"spinning": False, "threads": 2})]  # fmt: skip
    file = make.run(cells, samples=30)
    found = gpubench.read(write(file, tmp_path / "run"))
    assert {name: str(kind) for name, kind in found.dtypes[: len(frames.COLUMNS)].items()} == (
        frames.COLUMNS
    )
    assert list(found.columns[len(frames.COLUMNS) :]) == ["option_spinning", "option_threads"]
    assert [str(found[f"option_{name}"].dtype) for name in ("spinning", "threads")] == [
        "boolean", "Int64",
    ]  # fmt: skip
    assert len(found) == len(file.records) == 12
    records = {(r.cell.key, r.repeat): r for r in file.records}
    for row in found.to_dict("records"):
        r = records[row["cell"], row["repeat"]]
        assert row["latency_median_ns"] == r.median_ns()
        assert row["images_per_s"] == r.images_per_s()
        assert row["batch_size"] == r.cell.batch_size
        assert row["peak_host_bytes"] == sum(x.peak_host_bytes for x in r.replicas)
        spins = row["option_spinning"]
        assert r.cell.options.get("spinning") is (None if pd.isna(spins) else spins)
    assert found["run"].unique().tolist() == [file.header.run_id]
    assert found["arm"].isna().all()


def test_what_did_not_work_has_rows_too(tmp_path: Path) -> None:
    file = make.realistic(samples=20)
    found = gpubench.read(write(file, tmp_path / "run"))
    counts = found["status"].value_counts()
    assert counts["missing"] == 1
    for status in ("failed", "unavailable", "unsupported", "ok"):
        assert counts[status] == sum(r.status == status for r in file.records)
    assert found.loc[found["kind"] == "out-of-memory", "reason"].str.contains("4.0 GiB").all()
    assert found.loc[found["status"] == "missing", "images_per_s"].isna().all()
    assert not found.loc[found["status"] != "ok", "ranked"].any()


def test_it_is_the_export(tmp_path: Path) -> None:
    file = make.run([make.cell()], samples=20)
    found = gpubench.read(write(file, tmp_path / "run"))
    stored = exports.export([file], "csv")[""].decode()
    assert pd.read_csv(io.StringIO(stored), dtype=str).columns.tolist() == found.columns.tolist()
    pd.testing.assert_frame_equal(found, frames.frame([file]))


def test_an_ab_is_both_arms_and_its_verdicts(tmp_path: Path) -> None:
    for file in make_pairs.arms([make.cell(), make.cell(backend="openvino")], effect={0: 0.2}):
        write(file, tmp_path / "ab" / str(file.header.pairing and file.header.pairing.arm))
    found = gpubench.read(tmp_path / "ab")
    assert found["arm"].unique().tolist() == ["baseline", "candidate"]
    assert found["session"].nunique() == 1
    assert set(found["order"]) <= {"ABBA", "BAAB"}
    title, verdicts = next(iter(gpubench.tables(tmp_path / "ab").items()))
    assert title == "Verdicts"
    assert verdicts["verdict"].tolist() == ["REGRESSED", "EQUIVALENT"]
    assert verdicts["ratio"][0] == pytest.approx(1.2, rel=0.02)
    assert {str(verdicts[name].dtype) for name in ("ratio", "low", "high", "p")} == {"Float64"}
    latency = gpubench.tables(tmp_path / "ab")["Latency per batch"]
    assert set(latency["run"]) == {"baseline", "candidate"}
    assert "Verdicts" not in gpubench.tables(tmp_path / "ab" / "baseline")


def test_several_runs_are_told_apart(tmp_path: Path) -> None:
    paths = [
        write(make.run([make.cell()], run_id=name, samples=20), tmp_path / name)
        for name in ("a", "b")
    ]
    assert gpubench.read(paths).groupby("run").size().to_dict() == {"a": 3, "b": 3}
    assert gpubench.tables(paths)["Latency per batch"]["run"].tolist() == ["a", "b"]
    assert len(gpubench.read(str(paths[0] / RECORDS))) == 3


def test_a_run_without_anything_is_an_empty_frame(tmp_path: Path) -> None:
    empty = write(RecordFile("x", make.header([]), []), tmp_path / "run")
    found = gpubench.read(empty)
    assert found.empty
    assert {name: str(kind) for name, kind in found.dtypes.items()} == frames.COLUMNS
    assert gpubench.tables(empty) == {}


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    for ask in (gpubench.read, gpubench.tables):
        with pytest.raises(RecordError, match="no record file there"):
            ask(tmp_path)


def test_tables_have_units_bounds_and_types(tmp_path: Path) -> None:
    cells = make.grid(batches=(1, 4), replicas=(1, 2))
    file = make.run(cells, samples=40)
    records = [replace(r, telemetry={"gpus": [make.GPU]}) for r in file.records]
    found = gpubench.tables(write(replace(file, records=records), tmp_path / "run"))
    latency = found["Latency per batch"]
    assert (latency["p50 low [ns]"] < latency["p50 [ns]"]).all()
    assert (latency["p50 [ns]"] < latency["p50 high [ns]"]).all()
    fast, wanted = found["Throughput"], {
        "backend": "string", "batch": "Int64", "images/s": "Float64", "images/s low": "Float64",
        "speed-up": "Float64", "match": "Float64", "repeats": "Int64", "flags": "string",
        "cell": "string",
    }  # fmt: skip
    assert {name: str(fast[name].dtype) for name in wanted} == wanted
    assert {"host memory [bytes]", "SM clock max [MHz]"} <= set(found["Machine while measuring"])
    assert set(latency["cell"]) == {c.key for c in cells if c.scenario == "latency"}


def test_a_stage_has_its_share(tmp_path: Path) -> None:
    found = gpubench.tables(write(make_pipelines.run(make_pipelines.cells()), tmp_path / "run"))
    stages = found["Stages of the whole pipeline"]
    assert (stages["decode [ns]"] > 0).all()
    assert stages["decode share"].between(0, 1).all()


@pytest.mark.parametrize("name", ["read", "tables"])
def test_the_example_in_the_docstring_runs(name: str) -> None:
    (test,) = doctest.DocTestFinder().find(getattr(frames, name), name, globs={})
    assert len(test.examples) > 1
    for example in test.examples:
        source = example.source.replace("reports/reference/quick-epyc-2core", str(REFERENCE))
        exec(source, test.globs)  # noqa: S102 (our own)
