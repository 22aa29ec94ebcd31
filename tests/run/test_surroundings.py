"""A stranger's folder as working directory, and what libraries would tell their makers."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpubench.errors import CellFailed
from gpubench.machine import environment
from gpubench.machine.import_check import try_imports
from gpubench.machine.processes import instruments
from gpubench.records.reader import read
from gpubench.report.html import templating
from gpubench.run.ab.interpreters import has_gpubench
from gpubench.run.agent.client import AgentClient
from gpubench.run.serving.replica import Remote, Setup
from gpubench.suite.types import Cell
from gpubench.workload.data.preprocess import Spec
from tests.conftest import WITHOUT_PAGE
from tests.report.make import cell

PLANTED = ("statistics", "torch", "numpy", "onnxruntime", "vl_convert", "gpubench/__init__")
COMMAND = [sys.executable, "-P", "-c", "from gpubench.cli.main import main; main()"]
"""What the installed script does; without "-P" Python itself would look here first."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; whatever Python takes from it leaves a file ``ran``."""
    here = tmp_path / "strange"
    (here / "gpubench").mkdir(parents=True)
    for name in PLANTED:
        (here / f"{name}.py").write_text(f"open({str(here / 'ran')!r}, 'a').write({name!r})")
    monkeypatch.chdir(here)
    subprocess.run([sys.executable, "-c", "import statistics"], check=True)
    (here / "ran").unlink()  # it does, where nothing is done about it
    return here


def agent(python: Path | None, directory: Path) -> None:
    with AgentClient(["statistics", "numpy"], directory / "cache", directory / "log", python) as it:
        assert it.start().errors == {}


def replica(one: Cell) -> None:
    spec = Spec(size=(8, 8), resize=None)
    setup = Setup(cell=one, artefact="", spec=spec, outputs=1, replica=0, cores=(), timeout_s=60)
    with pytest.raises(CellFailed, match=r"shape\.json"):  # so far it came: there is no artefact
        Remote(setup)


@pytest.mark.parametrize(
    "start",
    [
        lambda path: agent(None, path),
        lambda path: agent(Path(sys.executable), path),
        lambda path: has_gpubench(Path(sys.executable)) or pytest.fail("found none"),
        lambda path: replica(cell(backend="null", batch_size=1)),
        pytest.param(lambda path: templating.vega.__wrapped__(), marks=pytest.mark.slow),  # type: ignore[attr-defined]
        lambda path: try_imports(["statistics", "numpy", "gpubench"], 60),
    ],
    ids=["agent", "another-agent", "another-interpreter", "replica", "charts", "doctor"],
)
def test_nothing_is_imported_from_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[Path], object]
) -> None:
    monkeypatch.syspath_prepend("")  # as an interactive caller of gpubench.load has it
    start(tmp_path)
    assert not (folder / "ran").exists(), (folder / "ran").read_text()


@pytest.mark.slow
def test_the_commands_import_nothing_from_the_working_directory(
    folder: Path, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    """And a backend on PYTHONPATH works all the same: the fake one."""
    suite, out = str(write_suite(batch_size="[1]")), str(tmp_path / "out")
    for words in (["run", suite, "-o", out], ["report", out, "-o", "page.html"], ["doctor"],
                  ["export", out, "-f", "parquet", "-o", "out.parquet"],
                  ["ab", suite, "--baseline", "batch_size=1", "--candidate", "batch_size=1",
                   "--budget", "5s", "-o", str(tmp_path / "ab")]):  # fmt: skip
        done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
        assert not (folder / "ran").exists(), (words, (folder / "ran").read_text())
        assert "Traceback" not in done.stderr, done.stderr
    done = subprocess.run([sys.executable, "-m", "gpubench", "list", "backends"], check=False,
                          capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert "fake" in done.stdout


def test_what_slows_this_process_is_named() -> None:
    before = instruments()
    gc.set_debug(gc.DEBUG_UNCOLLECTABLE)
    sys.setprofile(lambda *_: None)
    try:
        found = set(instruments()) - set(before)
    finally:
        sys.setprofile(None)
        gc.set_debug(0)
    assert found == {"gc.set_debug", "sys.setprofile"}


@pytest.mark.slow
def test_what_slows_a_measured_process_is_flagged_and_named(
    write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    """What only would trace it, such as coverage of subprocesses, does not reach it."""
    suite = str(write_suite(batch_size="[1]"))
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import os, sys\nif 'COVERAGE_PROCESS_START' in os.environ: sys.settrace(lambda *_: None)"
    )
    path = os.pathsep.join([str(hook), os.environ["PYTHONPATH"]])
    runs = []
    for name, more in (("coverage", "COVERAGE_PROCESS_START"), ("traced", "PYTHONTRACEMALLOC")):
        environ = os.environ | {"PYTHONPATH": path, more: "1"}
        command = [*WITHOUT_PAGE, "run", suite, "-o", str(tmp_path / name), "-q"]
        subprocess.run(command, env=environ, check=True)
        runs.append(read(tmp_path / name))
    clean, traced = (run.records[0] for run in runs)
    assert "INSTRUMENTED" not in clean.flags
    assert "INSTRUMENTED" in traced.flags
    assert traced.facts["instruments"] == ["tracemalloc"]
    one, two = (run.header.environment for run in runs)
    assert environment.changes(one, two) == {"variables.PYTHONTRACEMALLOC": "unset -> 1"}


SUITE = """
[workload]
model = "digits"
[axes]
backend = ["torch-eager", "onnxruntime", "openvino"]
device = "cpu"
batch_size = 1
cores = 1
scenario = "latency"
[policy]
repeats = 1
duration_s = 0.05
warmup_s = 0.02
parity_images = 4
"""
LOAD = """
import sys, numpy, gpubench
with gpubench.load(sys.argv[1]) as classifier:
    classifier([numpy.zeros((32, 32, 3), numpy.uint8)])
"""


@pytest.mark.slow
def test_libraries_tell_nobody(tmp_path: Path) -> None:
    """Under strace: no connection, and no file below HOME."""
    if not (strace := shutil.which("strace")):
        pytest.skip("strace is not installed: apt-get install strace")
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "s.toml").write_text(SUITE)
    own = ("XDG_", "ORT_DISABLE", "DO_NOT_TRACK", "CI")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    command, out = COMMAND, ["--cache-dir", "cache"]
    for words in (
        [*command, "run", "s.toml", *out, "-o", "run"],
        [*command, "deploy", "s.toml", *out, "-o", "made", "--backend", "onnxruntime"],
        [sys.executable, "-c", LOAD, "made"],
        [*command, "doctor"],
    ):
        trace = [strace, "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect", "-o", "trace"]
        done = subprocess.run([*trace, *words], cwd=tmp_path, env=environ | {"HOME": str(home)},
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen = (tmp_path / "trace").read_text()
        assert [line for line in seen.splitlines() if "AF_INET" in line] == []
        assert [str(path) for path in home.rglob("*") if path.is_file()] == []
