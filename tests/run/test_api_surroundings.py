"""`gpubench` called from where people work: notebooks, scripts, threads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from gpubench.machine.processes import descendants
from gpubench.records.reader import read
from tests.faults.conftest import no_root_rights

WriteSuite = Callable[..., Path]
LIVE = """
import torch
from torch import nn
class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(16, 10)
    def forward(self, images):
        return self.head(self.body(images))
mine = Mine().train()
first = next(mine.parameters())
"""
RUN = """import gpubench
run = gpubench.run({suite!r}, output={out!r}, cache_dir={cache!r}, repeats=1)
print(run.ok, len(run.file.records))
"""


class Notebook:
    """A kernel; what a cell printed, displayed and raised."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.manager import start_new_kernel

        environ = {**os.environ, "IPYTHONDIR": str(folder / "ipython")}
        self.manager, self.client = start_new_kernel(cwd=str(folder), env=environ)

    def start(self, code: str) -> str:
        sent: str = self.client.execute(code)
        return sent

    def finish(self, sent: str, limit_s: float = 240.0) -> dict[str, Any]:
        """Everything that the cell ``sent`` gave, until the kernel is idle."""
        end = time.monotonic() + limit_s
        told: dict[str, Any] = {"stdout": "", "stderr": "", "shown": {}, "result": {}, "error": ""}
        while time.monotonic() < end:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") != sent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                told[content["name"]] += content["text"]
            elif kind in ("display_data", "update_display_data"):
                name = content["transient"]["display_id"]
                told["shown"].setdefault(name, []).append(content["data"])
            elif kind == "execute_result":
                told["result"] = content["data"]
            elif kind == "error":
                told["error"] = f"{content['ename']}: {content['evalue']}"
            elif kind == "status" and content["execution_state"] == "idle":
                return told
        raise TimeoutError(told)

    def __call__(self, code: str) -> dict[str, Any]:
        return self.finish(self.start(code))

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.process.pid)


@pytest.fixture
def notebook(fakes: None, tmp_path: Path) -> Iterator[Notebook]:
    made = Notebook(tmp_path)
    yield made
    made.client.stop_channels()
    made.manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_a_notebook(
    notebook: Notebook, write_suite: WriteSuite, cache_dir: Path, tmp_path: Path
) -> None:
    """One kernel for all: a bar that goes, tables, an interrupt, threads, a module of a cell."""
    suite, cache = str(write_suite()), str(cache_dir)
    told = notebook(RUN.format(suite=suite, out="one", cache=cache) + "run")
    assert told["error"] == ""
    assert "True 2" in told["stdout"]
    assert "<table" in told["result"]["text/html"]
    assert "fake" in told["result"]["text/plain"]
    (bar,) = told["shown"].values()
    assert len(bar) > 2
    assert bar[-1] == {"text/html": "", "text/plain": ""}, "gone when done"
    assert "fake fp32 b1 x1 latency" in json.dumps(bar)

    long = f"gpubench.run({suite!r}, cache_dir={cache!r}, repeats=12, duration_s=0.1"
    sent = notebook.start(f"{long})")
    while not (found := [*tmp_path.glob("reports/*/records.jsonl")]) or (
        found[0].read_bytes().count(b"\n") < 4
    ):
        time.sleep(0.05)
    [two] = [path.parent for path in found]
    refused = subprocess.run(
        [sys.executable, "-c", f"import gpubench; {long}, resume=True)"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "another gpubench is writing to it" in refused.stderr
    begin = time.monotonic()
    notebook.manager.interrupt_kernel()
    told = notebook.finish(sent)
    print(f"interrupted within {time.monotonic() - begin:.2f} s")
    assert told["error"].startswith("Interrupted: interrupted; what was finished is kept")
    assert descendants([notebook.pid]) == set()
    kept = len(read(two).records)
    assert kept >= 3
    told = notebook(f"import asyncio\nfound = await asyncio.to_thread(lambda: {long}, "
                    "resume=True, progress=False)); len(found.file.records)")  # fmt: skip
    assert told["error"] == ""
    assert told["result"]["text/plain"] == "24"
    assert len(read(two).records) == 24, "the same call has found it"

    live = "input_size=16, backend='torch-eager', batch_size=2, device='cpu', duration_s=0.05"
    told = notebook(
        LIVE + f"run = gpubench.run(mine, {live}, output='live', cache_dir={cache!r}, repeats=1)\n"
        "print(run.ok, mine.training, next(mine.parameters()) is first, first.device)\nrun"
    )
    assert told["error"] == ""
    assert "True True True cpu" in told["stdout"]
    assert "Mine" in told["result"]["text/html"]
    names = {path.suffix for path in (tmp_path / "live").iterdir()}
    assert names == {".jsonl", ".log", ".toml", ".cloudpickle"}
    again = [sys.executable, "-m", "gpubench", "run", "live/Mine.toml", "-o", "again", "-q"]
    subprocess.run([*again, "--cache-dir", cache], cwd=tmp_path, check=True)
    one, two = read(tmp_path / "live"), read(tmp_path / "again")
    assert [r.cell.key for r in one.records] == [r.cell.key for r in two.records]
    assert [r.contents for r in one.records] == [r.contents for r in two.records]


def test_scripts_need_no_guard(write_suite: WriteSuite, cache_dir: Path, tmp_path: Path) -> None:
    """A file, ``-c``, standard input; in a thread of one that has no stderr."""
    suite, cache = str(write_suite()), str(cache_dir)
    codes = {n: RUN.format(suite=suite, out=str(tmp_path / n), cache=cache) for n in "abc"}
    (tmp_path / "script.py").write_text(codes["a"])
    indented = codes["c"].replace("\n", "\n    ")
    thread = f"import sys, threading\nsys.stderr = None\ndef go():\n    {indented}\n"
    thread += "made = threading.Thread(target=go); made.start(); made.join()\n"
    for words, given in ((["script.py"], ""), (["-c", codes["b"]], ""), (["-"], thread)):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, input=given, text=True,
                              capture_output=True, check=False)  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "True 2\n"), done.stderr
        assert ("2 cells to measure" in done.stderr) == (given == "")


def told(words: list[str], place: Path, **more: Any) -> str:
    """What a process printed, which must end well."""
    environ = {**os.environ, "IPYTHONDIR": str(place / "ipython")}
    done = subprocess.run(
        [sys.executable, *words], cwd=place, env=environ, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **more,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def code(fakes: None, write_suite: WriteSuite, cache_dir: Path) -> Callable[[str], str]:
    """A call, which keeps its run in the directory of this name."""
    suite = str(write_suite())
    return lambda out: RUN.format(suite=suite, out=out, cache=str(cache_dir))


@pytest.mark.slow
def test_ipython_in_a_terminal(code: Callable[[str], str], tmp_path: Path) -> None:
    """Its own files, which may change the directory, and what is typed."""
    (tmp_path / "below").mkdir()
    (tmp_path / "a.ipy").write_text(f"%cd -q below\n{code('one')}run\n")
    ipython = ["-m", "IPython", "--no-banner", "--colors=NoColor"]
    assert "True 2" in told([*ipython, "a.ipy"], tmp_path)
    assert (tmp_path / "below" / "one").is_dir()
    assert "fake fp32 b1 x1 latency" in told([*ipython, "-c", f"{code('two')}print(run)"], tmp_path)


@pytest.mark.slow
def test_the_users_own_tests(code: Callable[[str], str], tmp_path: Path) -> None:
    """With their output captured, and in one of pytest's several processes."""
    body = code("run").replace("\n", "\n    ").replace("'run'", "str(tmp_path / 'run')")
    (tmp_path / "test_own.py").write_text(
        f"def test_it(tmp_path):\n    {body}\n    assert run.ok and 'fake' in repr(run)\n"
    )
    for more in ([], ["-n", "1"]):
        words = ["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *more]
        assert "1 passed" in told([*words, f"--basetemp={tmp_path / 'base'}"], tmp_path)


@pytest.mark.slow
def test_a_process_of_a_pool(code: Callable[[str], str], tmp_path: Path) -> None:
    """Forked from one that has threads, and a daemon, which may have no children of its own."""
    body = code("run").replace("\n", "\n    ")
    (tmp_path / "pool.py").write_text(
        f"import multiprocessing, torch\ndef go():\n    {body}\n"
        "made = multiprocessing.get_context('fork').Process(target=go, daemon=True)\n"
        "made.start(); made.join(); assert made.exitcode == 0\n"
    )
    assert "True 2" in told(["pool.py"], tmp_path)


def test_a_disk_that_cannot_be_written(code: Callable[[str], str], tmp_path: Path) -> None:
    """Says what does it, and does it; whether the model is live or not."""
    place = tmp_path / "shut"
    place.mkdir()
    tries = f"""
import gpubench, os
from gpubench.errors import InputError
os.chdir({str(place)!r})
for model in ("digits", print):
    try:
        gpubench.run(model, backend="null", batch_size=1, repeats=1, progress=False)
    except InputError as error:
        assert "reports: " in str(error) and "output" in str(error), error
    else:
        raise AssertionError("it was written")
{code(str(tmp_path / "open"))}
assert not os.listdir()
"""
    (tmp_path / "a.py").write_text(tries)
    place.chmod(0o500)
    assert "True 2" in told([str(tmp_path / "a.py")], tmp_path, preexec_fn=no_root_rights)


@pytest.mark.slow
def test_a_file_of_marimo(code: Callable[[str], str], tmp_path: Path) -> None:
    """As a script, and in its own kernel."""
    pytest.importorskip("marimo")
    body = code("run").replace("\n", "\n    ")
    (tmp_path / "app.py").write_text(
        f"import marimo\napp = marimo.App()\n@app.cell\ndef _():\n    {body}run\n    return\n"
        "if __name__ == '__main__':\n    app.run()\n"
    )
    assert "True 2" in told(["app.py"], tmp_path)
    shutil.rmtree(tmp_path / "run")
    told(["-m", "marimo", "-y", "export", "html", "app.py", "-o", "out.html"], tmp_path)
    page = (tmp_path / "out.html").read_text()
    assert "True 2" in page
    assert "fake fp32" in page


COLAB = """
import asyncio, google.colab, os, sys, torch
os.environ["VSCODE_PID"], __vsc_ipynb_file__ = "1", "/nowhere/a.ipynb"
class Bare:
    def __init__(self, stream):
        self.stream = stream
    def write(self, text):
        return self.stream.write(text)
    def flush(self):
        self.stream.flush()
sys.stdout, sys.stderr = Bare(sys.stdout), Bare(sys.stderr)
assert asyncio.get_running_loop() and torch.ones(64, 64).matmul(torch.ones(64, 64)).sum() > 0
os.chdir("/")
"""


@pytest.mark.slow
def test_a_kernel_as_those_of_colab_and_vs_code(
    notebook: Notebook, code: Callable[[str], str], tmp_path: Path
) -> None:
    """No files behind its streams, a loop that runs, torch in use, another directory."""
    colab = tmp_path / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").touch()
    given = notebook(f"{COLAB}{code(str(tmp_path / 'out'))}run")
    assert given["error"] == ""
    assert "True 2" in given["stdout"]
    assert "<table" in given["result"]["text/html"]
    [bar] = given["shown"].values()
    assert bar[-1] == {"text/html": "", "text/plain": ""}
    sent = notebook.start("os.mkdir('/tmp/gone-%d' % os.getpid()); "
                          "os.chdir('/tmp/gone-%d' % os.getpid()); os.rmdir(os.getcwd())\n"
                          f"{code(str(tmp_path / 'more'))}")  # fmt: skip
    assert "InputError: the working directory" in notebook.finish(sent)["error"]
