"""What the documents tell people to type is typed, and it answers in the words that they show.

Every line of a shell block is run, in the order of the page and in one folder; what takes long runs
in a smaller form (`SMALLER`) or is left to another test (`ELSEWHERE`). Numbers, verdicts and flags
differ from run to run: two thirds of the words of a block of output must be among those that are
printed, and the others among those that the package can print.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from gpubench.records.record import FLAGS
from tests.test_docs import PAGES, ROOT, text

DIGITS = "--model digits --images digits"
SMALL_AB = "--model digits --batch-size 1 --budget 10s"
SMALLER = {
    "gpubench tune resnet50 --max-latency p99=200ms --max-accuracy-drop 1 -o tuned":
        "gpubench tune digits --backend onnxruntime --baseline backend=onnxruntime --batch-size 8 "
        "--replicas 1 --max-latency p99=200ms --max-accuracy-drop 9 --budget 60s -o tuned",
    "gpubench tune digits --backend onnxruntime,openvino --baseline "
    "backend=onnxruntime,precision=fp32 --max-latency p99=20ms --max-accuracy-drop 1 --budget 5m "
    "-o runs/tune2":
        "gpubench tune digits --backend onnxruntime,openvino --baseline "
        "backend=onnxruntime,precision=fp32 --max-latency p99=20ms --max-accuracy-drop 1 "
        "--budget 150s -o runs/tune2",
    "gpubench run quick --model resnet50 --precision fp32,bf16":
        "gpubench plan quick --model resnet50 --precision fp32,bf16",
    "gpubench run latency --backend onnxruntime,openvino --batch-size 1,4":
        "gpubench run latency --backend onnxruntime,openvino --batch-size 1,4 --repeats 1 "
        f"{DIGITS}",
    "gpubench run throughput --device cuda --backend tensorrt":
        "gpubench plan throughput --device cuda --backend tensorrt",
    "gpubench run pipeline": f"gpubench plan pipeline {DIGITS}",
    "gpubench run quick --boundary compute,pipeline --decoder pil,turbo --images photos":
        "gpubench plan quick --boundary compute,pipeline --decoder pil,turbo --images photos",
    "gpubench run scaling": "gpubench plan scaling",
    "gpubench run throughput --replicas 1,2 --replicas-per-device 1,2":
        "gpubench plan throughput --replicas 1,2 --replicas-per-device 1,2",
    "gpubench run throughput --replicas 2 --dispatch static,dynamic":
        "gpubench plan throughput --replicas 2 --dispatch static,dynamic",
    "gpubench ab ci --baseline backend=torch-eager --candidate backend=onnxruntime":
        f"gpubench ab ci --baseline backend=torch-eager --candidate backend=onnxruntime {SMALL_AB}",
    "gpubench ab ci --backend torch-eager --baseline memory_format=contiguous "
    "--candidate memory_format=channels_last":
        "gpubench ab ci --backend torch-eager --baseline memory_format=contiguous "
        f"--candidate memory_format=channels_last {SMALL_AB}",
    "gpubench ab ci --baseline backend=torch-eager --candidate backend=onnxruntime --model digits "
    "--batch-size 1 --budget 4m -o runs/ab":
        "gpubench ab ci --baseline backend=torch-eager --candidate backend=onnxruntime "
        "--model digits --batch-size 1 --budget 40s -o runs/ab",
    "gpubench selftest --minutes 2": "gpubench selftest --minutes 0.6",
}  # fmt: skip
"""A line -> the one that is run in its place."""
ELSEWHERE = {
    "pip install uv && uv run gpubench run quick": ".ci/run",
    "uv run pytest": ".ci/run",
    "gpubench ab ci --baseline-python .venv-old --candidate-python .venv-new":
        "tests/run/ab/test_interpreters.py",
    "gpubench ab ci --baseline-ref": "tests/run/ab/test_interpreters.py",
    "gpubench bisect ci": "tests/run/bisect/test_driver.py",
    "gpubench init model.py:build": "tests/cli/test_init.py",
    "gpubench run ci -o run --quiet --require onnxruntime": "tests/cli/test_main.py",
    "uv sync --extra": "pyproject.toml",
    "uv sync --no-dev --extra": "pyproject.toml",
    'uv venv && uv pip install --torch-backend cpu "gpubench[cpu]"': "Dockerfile",
    'pip install "gpubench[c': ".ci/run",
    "pip install gpubench": ".ci/run",
    "pip install --dry-run": "tests/test_installing.py",
    "pip wheel -w wheels": "tests/test_installing.py",
    "pip install --no-index --find-links": "tests/test_installing.py",
    'pip install "gpubench[tensorrt]"': "pyproject.toml",
    "pip install tests/data/thirdparty_backend": "tests/backends/test_thirdparty.py",
    "gpubench run ci --model digits --backend torch-eager,onnx-reference":
        "tests/backends/test_thirdparty.py",
    "gpubench deploy reports/tune-resnet50-20260101T120000Z/best.toml": "docs/tune-and-deploy.md",
    "gpubench report reports/quick-20260101T120000Z": "docs/reading-results.md",
    "gpubench report runs/before runs/after": "tests/report",
    "gpubench run scaling --ray": "tests/run/cluster",
    "gpubench doctor --ray": "tests/run/cluster",
    "gpubench fleet": "tests/run/test_fleet.py",
    "gpubench run ci --model digits --backend onnxruntime --batch-size 1 --replicas 1,2":
        "tests/run/cluster",
    "ray start": "tests/run/cluster",
    "srun": "tests/run/cluster",
    "export RAY_AUTH_MODE": "tests/run/cluster",
    "gpubench tune resnet50 --max-latency p99=200ms --max-accuracy-drop 1\n": "README.md",
    "pytest suites/ci.toml": "tests/pytest_plugin",
    "gpubench compare runs/trend": "tests/analysis/compare",
}  # fmt: skip
"""How a line begins that is not run here -> what runs or holds it."""
SHOWN = {
    ("docs/pipeline.md", "What the pipeline takes"): "gpubench report runs/pipeline",
    ("docs/backends.md", "skipped"): "gpubench plan gpu",
    ("docs/how-it-measures.md", "clock: steps"): "gpubench selftest --minutes 0.6",
}
"""A page and how its block of output begins -> the command, where it is not the one above."""
FILES = {
    ("docs/suites.md", "[workload]\nmodel"): "mine.toml",
    ("docs/tune-and-deploy.md", "# best"): "shown.toml",
}
"""A page and how its block of TOML begins -> the name under which the page speaks of it."""
BAD = """[axes]
backend = ["torch-eager", "onnxruntine"]
batch_size = [1, 0]
precision = "fp23"
[policy]
repeat = 3
"""
_OF_THE_MACHINE = {"AMD", "EPYC", *FLAGS}
"""In what the documents show; another machine says its own, and is busy at another time."""


@cache
def vocabulary() -> set[str]:
    """Every word that the package can say: those of its strings, docstrings left out.

    What a run says besides its figures (flags, verdicts, what a search found) depends on what the
    machine did meanwhile; a word that no module has any more does not.
    """
    said = set[str]()
    for path in sorted((ROOT / "gpubench").rglob("*.py")):
        tree = ast.parse(path.read_text())
        dropped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in dropped:
                said |= words(str(node.value))
    return said


class Step(NamedTuple):
    kind: str
    body: str
    before: str
    """The paragraph above."""


def steps(name: str) -> list[Step]:
    found = re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```", text(name), re.M | re.S)
    return [Step(m[1], m[2], text(name)[: m.start()].rstrip().split("\n\n")[-1]) for m in found]


def typed(body: str) -> list[str]:
    """Command lines of a block of shell, without comments and `uv run`."""
    lines = body.replace("\\\n", " ").splitlines()
    plain = (re.sub(r"\s+#\s.*", "", line).strip() for line in lines)
    return [" ".join(re.sub(r"^uv run (?=gpubench)", "", line).split()) for line in plain if line]


def elsewhere(line: str) -> str | None:
    return next(
        (where for start, where in ELSEWHERE.items() if f"{line}\n".startswith(start)), None
    )


def words(said: str) -> set[str]:
    """Of three letters or more, none of a path's, nor what a line is cut off in."""
    whole = re.sub(r"\S*/\w\S*|\S* \.\.\.$", " ", said, flags=re.M)
    return set(re.findall(r"[A-Za-z][A-Za-z'-]{2,}", whole))


class Session:
    """One page, in a folder of its own."""

    def __init__(self, name: str, at: Path, cache: Path) -> None:
        self.name, self.at, self.ran, self.said = name, at, set[str](), ""
        scripts = Path(sys.executable).parent
        self.environment = os.environ | {
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(cache),
            "COLUMNS": "120",
        }
        (at / "bad.toml").write_text(BAD)
        for picture in ("cat.jpg", "dog.png"):
            Image.new("RGB", (64, 48), "olive").save(at / picture)
        (at / "reports").symlink_to(ROOT / "reports")
        self.python = ""

    def shell(self, line: str, *, code: int | None = 0) -> str:
        return self._run(["bash", "-c", line], code)

    def _run(self, command: list[str], code: int | None) -> str:
        done = subprocess.run(command, cwd=self.at, env=self.environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=400,
                              check=False)  # fmt: skip
        if code is not None:
            assert done.returncode == code, (command, done.stdout)
        return done.stdout

    def type(self, line: str) -> str:
        if elsewhere(line):
            return ""
        # verdicts of an A/B on a machine that does other things end in 0, 1 or 3
        by_verdict = {"ab", "tune"} & {*line.split()}
        return self.shell(SMALLER.get(line, line), code=None if by_verdict else 0)

    def step(self, step: Step) -> None:
        if step.kind in ("bash", "console", "sh"):
            self.said = "".join(self.type(line) for line in typed(step.body))
        elif step.kind == "toml":
            titles = [name for (page, start), name in FILES.items()
                      if page == self.name and step.body.startswith(start)]  # fmt: skip
            (self.at / (titles[0] if titles else "space.toml")).write_text(step.body)
        elif step.kind == "python" and "pytest.mark" in step.body:
            (self.at / "test_speed.py").write_text(step.body)
        elif step.kind == "python":
            self.python += step.body.replace("resnet50-best", self.deployed())
            self.said = self._run([sys.executable, "-c", self.python], 0)
        elif step.kind == "text":
            self.shown(step)

    def deployed(self) -> str:
        return "resnet50-best" if (self.at / "resnet50-best").exists() else "best2"

    def shown(self, step: Step) -> None:
        """The words of a block of output are those of its command."""
        body = step.body
        if prompt := re.match(r"\$ (gpubench .*)\n", body):
            body, line = body[prompt.end() :], prompt[1]
            if elsewhere(line):
                return
            self.said = self.shell(line, code=2 if "error:" in body else 0)
        elif given := [line for (page, start), line in SHOWN.items()
                       if page == self.name and body.startswith(start)]:  # fmt: skip
            self.said = self.shell(given[0])
        elif inline := re.findall(r"`(gpubench [a-z][^`]*\.toml)`", step.before):
            self.said = self.shell(inline[-1])
        if self.said:
            shown = words(body) - _OF_THE_MACHINE
            unsaid = shown - words(self.said)
            assert unsaid - vocabulary() == set(), (self.name, body, self.said)
            assert len(unsaid) <= len(shown) / 3, (self.name, unsaid, body, self.said)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ("README.md", *PAGES) if "```" in text(n)])
def test_a_page_can_be_followed(name: str, tmp_path: Path, made_once: Path) -> None:
    session = Session(name, tmp_path, made_once / "documents")
    for step in steps(name):
        session.step(step)
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_what_is_run_smaller_or_elsewhere_is_in_the_documents() -> None:
    lines = [line for name in ("README.md", *PAGES) for step in steps(name)
             if step.kind in ("bash", "console", "sh") for line in typed(step.body)]  # fmt: skip
    lines += re.findall(r"^\$ (gpubench .*)$", "\n".join(map(text, PAGES)), re.M)
    assert [line for line in SMALLER if line not in lines] == []
    assert [
        start for start in ELSEWHERE if not any(f"{x}\n".startswith(start) for x in lines)
    ] == []
    assert [where for where in ELSEWHERE.values() if not (ROOT / where).exists()] == []
    assert sum(elsewhere(line) is None for line in lines) >= 25


def test_a_word_that_is_not_printed_is_found(tmp_path: Path) -> None:
    session = Session("docs/suites.md", tmp_path, tmp_path)
    session.said = "error: suite bad.toml has 5 mistakes"
    session.shown(Step("text", "error: suite bad.toml has 3 mistakes\n", ""))
    with pytest.raises(AssertionError, match="faults"):
        session.shown(Step("text", "error: suite bad.toml has 3 faults\n", ""))
    busy = "The machine was busy (DRIFT,\nCPU-BUSY): this run separates 1.7×, not 5 %."
    more = ("latency throughput accuracy images batch replica core first last second third every "
            "fourth fifth sixth")  # fmt: skip
    session.said += f" {more}"
    session.shown(Step("text", f"{busy} error: suite bad.toml has 3 mistakes {more}", ""))
    with pytest.raises(AssertionError, match="busy"):
        session.shown(Step("text", f"{busy} error: suite bad.toml", ""))
