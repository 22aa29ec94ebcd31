"""`gpubench` called from where people work: notebooks, scripts, threads."""

from __future__ import annotations

import json
import os
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
