"""`gpubench` from Python: the same as the command line, and nothing of the caller's is touched."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

import gpubench
from gpubench import plugins
from gpubench.cli.main import cli
from gpubench.errors import InputError, RecordError, SuiteError
from gpubench.records.reader import begun, read
from gpubench.records.record import Record
from gpubench.records.writer import Writer
from gpubench.run import api, driver
from gpubench.run.watcher import Watcher
from gpubench.suite import file, grid
from tests.backends.onnx_files import colour_net

WriteSuite = Callable[..., Path]
CHEAP: dict[str, Any] = {"repeats": 1, "progress": False}


def plain(records: list[Record]) -> list[dict[str, Any]]:
    """All that two runs of the same must have in common."""
    kept = []
    for r in sorted(records, key=lambda r: (r.cell.key, r.repeat)):
        facts = {k: v for k, v in r.facts.items() if "pid" not in k and "ns" not in k}
        kept.append({
            "cell": msgspec.to_builtins(r.cell), "repeat": r.repeat, "status": r.status,
            "kind": r.kind, "reason": r.reason, "remedy": r.remedy, "contents": r.contents,
            "parity": msgspec.to_builtins(r.parity), "facts": sorted(facts),
            "replicas": len(r.replicas),
        })  # fmt: skip
    return kept


def command(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(map(str, words)))
    return done.exit_code, done.output


# ------------------------------------------------------------------------------ run, plan


def test_run_does_what_the_command_does(
    write_suite: WriteSuite, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same records but for times; and its directory's suite measures the same again."""
    monkeypatch.setattr("gpubench.run.results.Run.document", lambda *_: "no report")
    suite = write_suite(axes='options.fake.fail = ["", "unsupported", "run"]')
    more = {"batch_size": [4], "repeats": 1, "cache_dir": cache_dir}
    own = gpubench.run(str(suite), output=tmp_path / "own", progress=False, **more)
    words = ["--batch-size", "4", "--repeats", "1", "--cache-dir", cache_dir, "-q"]
    code, _ = command("run", suite, *words, "-o", tmp_path / "typed")
    assert code == 1
    assert not own.ok
    typed = read(tmp_path / "typed")
    assert plain(own.file.records) == plain(typed.records)
    assert {r.status for r in own.file.records} == {"ok", "failed", "unsupported"}
    assert own.file.header.suite == typed.header.suite
    beside = {path.name for path in own.directory.iterdir()}
    assert beside == {"records.jsonl", "agent.log", "tiny.toml"}
    again = gpubench.run(own.directory / "tiny.toml", output=tmp_path / "again",
                         cache_dir=cache_dir, progress=False)  # fmt: skip
    assert plain(again.file.records) == plain(typed.records)
    assert again.file.header.suite == typed.header.suite
    assert own.file.header.command == ["gpubench", "run", str(tmp_path / "own" / "tiny.toml")]
    with pytest.raises(RecordError, match="holds a run already"):
        gpubench.run(str(suite), output=tmp_path / "own", progress=False, **more)
    gone_on = gpubench.run(str(suite), output=tmp_path / "own", resume=True, **CHEAP,
                           batch_size=4, cache_dir=cache_dir)  # fmt: skip
    assert plain(gone_on.file.records) == plain(typed.records)


def test_a_plan_is_the_commands_and_runs_nothing(
    write_suite: WriteSuite, cache_dir: Path, tmp_path: Path
) -> None:
    suite = write_suite(backend='["fake", "fake-missing"]')
    made = gpubench.plan(suite, cache_dir=cache_dir, keys=True)
    _, said = command("plan", suite, "--keys", "--cache-dir", cache_dir)
    words = [w for w in repr(made).split() if w not in "│"]
    assert words == said.split()
    assert [cell.batch_size for cell in made.cells] == [1, 4]
    assert {skip.status for skip in made.skips} == {"unavailable"}
    frame = made.frame()
    assert list(frame["status"]) == ["runs", "runs", "unavailable", "unavailable"]
    assert frame["key"][0] == made.cells[0].key
    assert made.seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


DRAWN = ("run_id", "started", "command", "environment", "session", "seed")
"""Of a job: what no two have in common."""


def shape(job: Any) -> Any:
    """All of a job that says what is measured, and how."""
    if isinstance(job, msgspec.Struct):
        fields = msgspec.structs.asdict(job)
        return type(job).__name__, {k: shape(v) for k, v in fields.items() if k not in DRAWN}
    if isinstance(job, dict):
        return {key: shape(value) for key, value in job.items()}
    if isinstance(job, list | tuple):
        return [shape(each) for each in job]
    return job if isinstance(job, str | int | float | Path | None) else type(job).__name__


@pytest.mark.parametrize(
    ("run", "words", "call"),
    [
        (
            "ab.driver.run",
            ["ab", "tiny.toml", "--baseline", "batch_size=1", "--candidate", "batch_size=4",
             "--delta", "3%", "--alpha", "2%", "--metric", "memory=0.5", "--metric", "p99",
             "--budget", "9s", "--require", "fake", "-o", "out"],
            lambda: gpubench.ab(
                "tiny.toml", baseline={"batch_size": 1}, candidate="batch_size=4", delta=0.03,
                alpha="2%", metric=["memory=0.5", "p99"], budget=9, require="fake", output="out"),
        ),
        (
            "tune.driver.run",
            ["tune", "digits", "--objective", "p99", "--max-latency", "p99=20ms", "--budget", "9s",
             "--max-accuracy-drop", "1", "--min-accuracy", "20%", "--min-throughput", "5",
             "--precision", "fp32", "--batch-size", "1,2", "--backend", "onnxruntime",
             "--baseline", "backend=onnxruntime", "--seed", "3", "-o", "out"],
            lambda: gpubench.tune(
                "digits", objective="p99", max_latency="p99=20ms", budget="9s",
                max_accuracy_drop=1, min_accuracy=0.2, min_throughput=5, precision="fp32",
                batch_size=[1, 2], backend="onnxruntime", seed=3, output="out",
                baseline={"backend": "onnxruntime"}),
        ),
        (
            "deploy.deploy",
            ["deploy", "tiny.toml", "--batch-size", "4", "-o", "out"],
            lambda: gpubench.deploy("tiny.toml", "out", batch_size=4),
        ),
        (
            "bisect.driver.run",
            ["bisect", "tiny.toml", "--good", "HEAD~1", "--bad", "HEAD", "--budget", "9s",
             "--metric", "memory=0.5", "--batch-size", "4", "-o", "out"],
            lambda: gpubench.bisect(
                Path("tiny.toml"), good="HEAD~1", bad="HEAD", budget=9, metric="memory=0.5",
                batch_size=[4], output="out"),
        ),
        (
            "selftest.run",
            ["selftest", "tiny.toml", "--minutes", "3", "--delta", "3%", "--batch-size", "4"],
            lambda: gpubench.selftest("tiny.toml", minutes=3, delta=0.03, batch_size=[4]),
        ),
        (
            "inspect.inspect",
            ["inspect", "resnet18", "--arguments", "a=1", "--device", "cpu"],
            lambda: gpubench.inspect("resnet18", arguments={"a": 1}, device="cpu"),
        ),
        (
            "fleet.run",
            ["fleet", "tiny.toml", "--price", "L4=0.7,A=2", "--per", "node", "--max-latency",
             "p99=2ms", "--batch-size", "4", "-o", "out"],
            lambda: gpubench.fleet(
                "tiny.toml", gpubench.Cluster(), price={"L4": 0.7, "A": 2}, per="node",
                max_latency="p99=2ms", batch_size=[4], output="out"),
        ),
    ],
    ids=["ab", "tune", "deploy", "bisect", "selftest", "inspect", "fleet"],
)  # fmt: skip
def test_a_command_gives_the_job_of_the_function_of_its_name(
    run: str, words: list[str], call: Callable[[], Any], write_suite: WriteSuite, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever is typed is what would be called; what is made of a job is the job's affair."""
    write_suite()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "gpubench.run.cluster.ray_cluster.Cluster", lambda *_: nullcontext(nullcontext())
    )
    if "HEAD" in words:
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([*git, "init", "-q"], check=True)
        for number in "ab":
            Path(number).touch()
            subprocess.run([*git, "add", "."], check=True)
            subprocess.run([*git, "commit", "-q", "-m", number], check=True)
    jobs: list[Any] = []
    typed: list[list[str]] = []

    def stop(*job: Any, **more: Any) -> None:
        told = [each for each in job if not callable(each) and not isinstance(each, Watcher)]
        jobs.append(shape([*told, more]))
        for each in [*getattr(job[0], "sides", job[:1])][:1]:
            typed.extend([header.command] if (header := getattr(each, "header", None)) else [])
        raise KeyboardInterrupt

    monkeypatch.setattr(f"gpubench.run.{run}", stop)
    assert command(*words)[0] in (1, 130)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert len(jobs) == 2
    assert jobs[0] == jobs[1]
    if run in ("ab.driver.run", "tune.driver.run"):  # what the records say repeats the call
        assert command(*typed[1][1:], "-o", "out")[0] == 130
        assert jobs[2] == jobs[1]


def test_every_command_has_a_function() -> None:
    """But those about the program itself; a report is what `open` gives's."""
    rest = {"cache", "completion", "init", "list", "report", "schema"}
    assert {*cli.commands} - {*gpubench._PUBLIC, "run"} == rest


def test_commands_that_read_say_what_the_functions_do(tmp_path: Path) -> None:
    reference = Path(__file__).parents[2] / "reports" / "reference"
    old = new = next(reference.glob("quick-*"))
    run = gpubench.open(old)
    for name in ("a.md", "a.csv", "a.json", "a.txt"):
        form = {"txt": "text"}.get(name[2:], name[2:])
        assert command("report", old, "-f", form, "-o", tmp_path / name)[0] == 0
        assert run.report(tmp_path / f"own-{name}").read_text() == (tmp_path / name).read_text()
    found = gpubench.compare(old, new, delta="5%", alpha=0.02, allow_different="cpu")
    asked = ["--delta", "5%", "--alpha", "2%", "--allow-different", "cpu"]
    code, _ = command("compare", old, new, *asked, "-o", tmp_path / "c.json")
    assert code == found.code
    assert found.report(tmp_path / "own-c.json").read_text() == (tmp_path / "c.json").read_text()
    assert len(found.tables["Verdicts"]) == len(found.verdicts) > 0
    assert {*found.frame()["run"]} == {file.header.run_id for file in found.files}
    with pytest.raises(InputError, match="needs two runs"):
        gpubench.compare(old)
    trend = gpubench.history(reference, delta="3%")
    for name in ("h.json", "h.html"):
        words = ["history", reference, "--delta", "3%", "-o", tmp_path / name]
        assert command(*words)[0] == 0
        assert trend.report(tmp_path / f"own-{name}").read_text() == (tmp_path / name).read_text()
    assert len(trend.frame()) == sum(len(t.points) for t in trend.trends) > 0
    assert trend._repr_html_().count("<tr>") == 1 + len(trend.trends)
    assert trend.trends[0].label in trend._repr_html_()
    assert "Folding" not in trend._repr_html_()
    for form in ("junit", "csv"):
        assert command("export", old, "--format", form, "-o", tmp_path / form)[0] == 0
        assert gpubench.export(old, form) == {"": (tmp_path / form).read_bytes()}
    gpubench.export([old], "github-action-benchmark", tmp_path / "more")
    assert [*(tmp_path / "more").iterdir()]


# ------------------------------------------------------------------------------ suites


def test_values_of_numpy_and_torch_are_numbers() -> None:
    """As are those of whatever gives them one after another."""
    import numpy as np
    import torch

    for given in (np.array([1, 2]), torch.tensor([1, 2]), (n for n in (1, 2)), [np.int64(1), 2]):
        made = gpubench.plan("quick", backend="null", batch_size=given, device=torch.device("cpu"),
                             precision=[torch.float32, torch.bfloat16])  # fmt: skip
        assert made.job.plan.suite.axes.precision == ("fp32", "bf16")
        assert made.job.plan.suite.axes.batch_size == (1, 2)
        assert made.job.plan.suite.axes.device == "cpu"


def test_a_suite_built_in_python_is_the_one_its_file_says(tmp_path: Path, tiny_onnx: Path) -> None:
    tables = {
        "workload": {"model": str(tiny_onnx), "images": "synthetic",
                     "preprocess": {"mean": [0.5, 0.25, 1e-3]}},
        "axes": {"backend": ["onnxruntime", "openvino"], "batch_size": (1, 8),
                 "options": {"onnxruntime": {"spinning": [True, False]}}},
        "policy": {"repeats": 2}, "gate": {"agreement": 1},
        "exclude": [{"backend": "openvino", "batch_size": 8}],
    }  # fmt: skip
    built = gpubench.Suite("mine", **tables)
    path = built.save(tmp_path / "mine.toml")
    again = file.load(str(path), api.catalog())
    assert again == built.draft.suite()
    assert len(grid.expand(again, "cpu", 2)) == 2 * 5
    assert repr(built).startswith("# mine\n")
    flat = gpubench.Suite(
        "mine", **tables["workload"], **tables["policy"], gate={"agreement": 1},
        backend=["onnxruntime", "openvino"], batch_size=[1, 8],
    )  # fmt: skip
    assert flat.draft.suite().workload == again.workload
    assert flat.draft.suite().policy == again.policy


def test_rules_and_options_that_an_override_leaves_idle_are_not_written(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    """A file must not have them, so the directory's would be refused."""
    suite = write_suite(backend='["fake", "fake-missing"]', axes="""options.fake.latency_us = 5.0
[[exclude]]
backend = "fake"
batch_size = 4""")  # fmt: skip
    checked = gpubench.plan(suite, backend="fake-missing").job.plan.suite
    path = api._saved(checked, tmp_path / "again.toml")
    again = file.load(str(path), api.catalog())
    assert msgspec.structs.replace(again, exclude=checked.exclude, name="tiny") == checked


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gpubench.Suite(backend="fake", batchsize=1), 'batchsize: unknown key'),
        (lambda: gpubench.Suite(model="resnet18"), "axes: missing"),
        (lambda: gpubench.plan("nothing-here"), "no suite and no file"),
        (lambda: gpubench.plan("quick", batch_size=[0]), "--batch-size"),
        (lambda: gpubench.plan("quick", nonsense=1), "--nonsense"),
        (lambda: gpubench.run("quick", cell=["none"], progress=False), "no such cell"),
        (lambda: gpubench.ab("quick"), "nothing differs"),
        (lambda: gpubench.ab("quick", baseline={"images": "photos"}), "must be the same"),
        (lambda: gpubench.ab("quick", baseline="precision=fp32", delta=2), "--delta '2'"),
        (lambda: gpubench.tune("resnet18", budget=0), "--budget '0'"),
        (lambda: gpubench.tune("resnet18", precision="fp33", batch_size=1), "fp33"),
        (lambda: gpubench.plan("quick", cell="none"), "--cell 'none'"),
        (lambda: gpubench.tune("resnet18", min_accuracy=75), "--min-accuracy 75"),
        (lambda: gpubench.tune("resnet18", max_latency=20), "--max-latency '20'"),
        (lambda: gpubench.tune("resnet18", max_accuracy_drop="1"), "--max-accuracy-drop '1'"),
        (lambda: gpubench.tune("resnet18", accuracy_images=1.5), "--accuracy-images 1.5"),  # type: ignore[arg-type]
        (lambda: gpubench.tune("resnet18", accuracy_images=True), "--accuracy-images True"),
        (lambda: gpubench.plan("quick", output_name="logits"), '--output-name = "logits": only'),
        (lambda: gpubench.tune("resnet18", batchsize=1), "--batchsize: a search is not told"),
        (lambda: gpubench.tune("resnet18", seed="x"), "--seed 'x'"),  # type: ignore[arg-type]
        (lambda: gpubench.tune(None), "of type NoneType: expected a model"),
        (lambda: gpubench.run([1]), "of type list: expected a suite"),
        (lambda: gpubench.run("quick", output=3), "3: expected the path"),
        (lambda: gpubench.run("quick", images=3), "images: of type int"),
        (lambda: gpubench.run("quick", require="openvno"), "--require 'openvno'"),
        (lambda: gpubench.ab("quick", baseline=3), "--baseline 3: expected"),
        (lambda: gpubench.Suite(model=print, backend="openvino"), "print: live"),
        (lambda: gpubench.selftest("quick", model=print), "a self-test takes the name"),
        (lambda: gpubench.bisect(print, good="a", bad="b"), "a bisection takes"),  # type: ignore[arg-type]
        (lambda: gpubench.fleet("quick", None, price={"L4": 0}), "--price L4=0"),  # type: ignore[arg-type]
        (lambda: gpubench.fleet("quick", None, per="gpus"), "--per 'gpus': expected gpu or node"),  # type: ignore[arg-type]
        (lambda: gpubench.ab("quick", suite_from="bas"), "--suite-from 'bas': expected head or"),  # type: ignore[arg-type]
        (lambda: gpubench.selftest("quick", minutes="5"), "--minutes '5': expected more than 0"),  # type: ignore[arg-type]
        (lambda: gpubench.selftest("quick", minutes=True), "--minutes True: expected more than 0"),
        (lambda: gpubench.ab("quick", baseline_python=3), "3: expected the path of an interpr"),  # type: ignore[arg-type]
        (lambda: gpubench.run("quick", output=3), "3: expected the path of a directory"),  # type: ignore[arg-type]
        (lambda: gpubench.deploy("quick", 3), "3: expected the path"),  # type: ignore[arg-type]
        (lambda: gpubench.inspect(3), "of type int: expected a model"),
        (lambda: gpubench.export([], "csv"), "nothing to export"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_an_error_of_input_and_nothing_is_left(
    call: Callable[[], Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert not list(tmp_path.glob("reports/[!.]*"))


def test_a_live_model_is_planned_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    monkeypatch.chdir(tmp_path)
    made = gpubench.plan(nn.Linear(3, 4), input_size=(8, 16), batch_size=2, device="cpu")
    suite = made.job.plan.suite
    assert suite.name == "Linear"
    assert suite.workload.preprocess
    assert suite.workload.preprocess.size == (8, 16)
    assert Path(suite.workload.model).name.startswith("Linear-")
    assert {cell.replicas for cell in made.cells} == {1}
    with pytest.raises(SuiteError, match="--batch-size"):
        gpubench.run(nn.Linear(3, 4), batch_size=0)
    assert not list(tmp_path.glob("reports/[!.]*"))


def test_an_output_is_chosen_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any word of a suite, but that ``output`` is a run's directory."""
    file = colour_net(tmp_path / "net.onnx", outputs={"z": None, "v": None})
    made = gpubench.plan(file, output_name="v", device="cpu")
    assert {cell.output for cell in made.cells} == {"v"}
    monkeypatch.chdir(tmp_path)
    for words in (["plan", "quick", "--model", "net.onnx"], ["tune", "net.onnx"]):
        words += ["--device", "cpu", "--output-name", "y"]
        done = CliRunner().invoke(cli, words)
        assert isinstance(done.exception, InputError), done.output
        assert "has no output 'y' (workload.output), but 'z', 'v'" in str(done.exception)


# ------------------------------------------------------------------------------ what it gives


def test_what_is_stored_is_opened_and_shown(tmp_path: Path) -> None:
    reference = Path(__file__).parents[2] / "reports" / "reference"
    run = gpubench.open(next(reference.glob("quick-*")))
    assert isinstance(run, gpubench.Run)
    assert run.fastest
    assert run.fastest.cell.label in repr(run.fastest)
    assert "images/s" in repr(run.fastest)
    assert run.lowest_latency
    best = run.lowest_latency.p50_ns.value
    assert best == min(s.p50.value for s in run.summaries if s.ranked and s.p50.value)
    assert set(run.frame()["cell"]) == {s.key for s in run.summaries}
    assert "Latency per batch" in run.tables
    page = run._repr_html_()
    assert "<table" in page
    for banned in ("<script", "http", "src=", "@import", "url("):
        assert banned not in page
    assert "openvino" in page
    assert "openvino" in repr(run)
    for name, begins in (("a.html", "<!doctype"), ("a.md", "#"), ("a.json", "{"), ("a.csv", "run")):
        assert run.report(tmp_path / name).read_text().lstrip().startswith(begins)
    with pytest.raises(InputError, match="no format ends in"):
        run.report(tmp_path / "a.pdf")
    with pytest.raises(RecordError, match="no record file"):
        gpubench.open(tmp_path)
    for wrong in (gpubench.open, gpubench.compare, gpubench.history):
        with pytest.raises(InputError, match="None: expected the path"):
            wrong(None)


# ------------------------------------------------------------------------------ the caller's


def mine() -> dict[str, Any]:
    """The state of this process."""
    import torch

    loggers = {name: (log.level, list(log.handlers), log.disabled)
               for name, log in logging.root.manager.loggerDict.items()
               if isinstance(log, logging.Logger) and not name.startswith("gpubench")}  # fmt: skip
    return {
        "torch": (torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled(),
                  torch.get_default_dtype(), torch.get_rng_state().tolist(),
                  torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(),
                  torch.is_deterministic_algorithms_warn_only_enabled()),
        "environ": dict(os.environ), "cwd": Path.cwd(), "path": list(sys.path),
        "signals": [signal.getsignal(n) for n in signal.valid_signals()],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "root": (logging.root.level, list(logging.root.handlers)), "loggers": loggers,
        "warnings": list(warnings.filters), "threads": set(threading.enumerate()),
        "files": sorted(str(f.readlink()) for f in Path("/proc/self/fd").glob("*") if f.exists()),
        "main": sys.modules["__main__"], "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "affinity": os.sched_getaffinity(0),
        "switch": sys.getswitchinterval(),
    }  # fmt: skip


def test_the_callers_process_is_as_it_was(
    write_suite: WriteSuite, cache_dir: Path, tmp_path: Path
) -> None:
    suite = write_suite()
    gpubench.plan(suite)  # whatever is imported once
    before = mine()
    gpubench.run(suite, output=tmp_path / "run", cache_dir=cache_dir, **CHEAP)
    gpubench.plan(suite)
    after = mine()
    assert {key for key in before if before[key] != after[key]} == set()


def test_an_interrupted_call_says_how_to_go_on(
    write_suite: WriteSuite, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    monkeypatch.setattr(driver, "run", stopped)
    with pytest.raises(KeyboardInterrupt, match="resume=True") as caught:
        gpubench.run(write_suite(), output=out, cache_dir=cache_dir, **CHEAP)
    assert isinstance(caught.value, gpubench.Interrupted)
    assert str(out) in str(caught.value)
    assert file.load(str(out / "tiny.toml"), api.catalog()).name == "tiny"


def test_the_same_call_goes_on_with_what_it_began(
    write_suite: WriteSuite, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of the same suite, among others, whether it is over or not."""
    monkeypatch.chdir(tmp_path)
    more = {"cache_dir": cache_dir, "batch_size": 4, **CHEAP}
    one = gpubench.run(write_suite(), **more)
    other = gpubench.run("tiny.toml", **more | {"repeats": 2})
    assert one.directory != other.directory
    again = gpubench.run("tiny.toml", resume=True, **more | {"batch_size": iter([4])})
    assert again.directory == one.directory
    assert again.file == one.file
    words = ["--batch-size", "4", "--repeats", "1", "--cache-dir", cache_dir, "-q", "--resume"]
    assert command("run", "tiny.toml", *words)[0] == 0
    assert {path.parent for path in tmp_path.glob("reports/*/report.html")} == {
        tmp_path / one.directory}  # fmt: skip
    new = gpubench.run("tiny.toml", resume=True, **more | {"batch_size": 1})
    assert new.directory not in (one.directory, other.directory)
    assert len(new.file.records) == 1


CELL = """
from torch import nn
import torch
torch.manual_seed({seed})
class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
    def forward(self, images):
        return self.body(images).mean((2, 3))
mine = Mine()
"""


@pytest.mark.skipif(
    not plugins.serves(version("cloudpickle"), ">=3.1.3"), reason="older ones store the cell's name"
)
def test_a_cell_that_is_run_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it defines the model; and an A/B of two. What differs begins anew."""
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[Path, bool]] = []

    def stopped(job: Any, *_: object) -> None:
        seen.append((job.out, begun(job.out)))
        for place, side in [(job.out, job)] if hasattr(job, "header") else [
            (job.out / side.arm, side) for side in job.sides]:  # fmt: skip
            if not begun(place):
                with Writer(place, side.header):
                    pass
        raise KeyboardInterrupt

    def cell(seed: int = 0, number: int = 1, **more: Any) -> None:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(CELL.format(seed=seed), f"<cell {number}>", "exec"), space)  # noqa: S102
        asked = {"input_size": 16, "backend": "torch-eager", "device": "cpu", "progress": False}
        call: Any = gpubench.ab if "candidate" in more else gpubench.run
        with pytest.raises(gpubench.Interrupted, match="same call and resume=True"):
            call(space["mine"], **asked | more)

    monkeypatch.setattr(driver, "run", stopped)
    monkeypatch.setattr(api.pairs, "run", stopped)
    cell()
    cell(batch_size=8)
    cell(number=2, resume=True)
    cell(number=3, resume=True, seed=1)
    arms = {"baseline": {"batch_size": 1}, "candidate": {"batch_size": 8}}
    cell(**arms)
    cell(**arms, resume=True, number=4)
    places = [place for place, _ in seen]
    assert [found for _, found in seen] == [False, False, True, False, False, False]
    assert places[2] == places[0] != places[1]
    assert places[3] not in places[:3]
    assert places[5] == places[4] not in places[:4]


def test_importing_it_is_cheap() -> None:
    code = (
        "import sys, gpubench; assert gpubench.run and dir(gpubench)\n"
        "print(sorted({'torch', 'pandas', 'numpy', 'rich', 'click'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_that_is_public_is_explained_and_in_the_reference() -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    listed = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    public = {*gpubench._PUBLIC, "run"}
    assert listed - {"Fastest"} == public
    assert public <= {*dir(gpubench)}
    for name in public:
        value: Any = api.run if name == "run" else getattr(gpubench, name)
        assert inspect.getdoc(value), name
        for key, member in vars(value).items() if inspect.isclass(value) else ():
            if not key.startswith("_") and (callable(member) or isinstance(member, property)):
                own = [vars(base)[key] for base in value.__mro__ if key in vars(base)]
                assert any(inspect.getdoc(each) for each in own), f"{name}.{key}"
