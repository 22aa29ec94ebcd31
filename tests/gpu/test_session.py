"""The session of the first minutes, as far as it goes without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from gpubench.backends import base
from gpubench.pipeline.decoders import base as decoders
from gpubench.suite import file, grid
from gpubench.suite.types import Catalog
from gpubench.workload.models import registry
from tests.gpu import session


def test_its_suites_are_valid_on_a_gpu(tmp_path: Path) -> None:
    backends = {name: base.get(name).options for name in base.names()}
    installed = Catalog(
        backends=backends, models=registry.names(), decoders=tuple(decoders.names())
    )
    for name, text in session.SUITES.items():
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        cells = grid.expand(file.load(str(path), installed), "cuda", 8)
        assert [c.label for c in cells if base.get(c.backend).unsupported(c)] == []


@pytest.mark.slow
def test_all_of_it_on_the_cpu(fakes: None, tiny_onnx: Path, tmp_path: Path) -> None:
    assert session.main(["--dry-run", str(tiny_onnx), "-o", str(tmp_path)]) == 0
    done = json.loads((tmp_path / "steps.json").read_text())
    assert {name: each["status"] for name, each in done.items()} == {
        step.name: "ok" for step in session.steps()
    }
    assert "collected" in (tmp_path / "contract.log").read_text()


def test_a_step_that_has_ended_well_is_not_taken_again(
    fakes: None, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--dry-run", str(tiny_onnx), "--only", "resnet50", "-o", str(tmp_path)]
    assert session.main(words) == 0
    done = json.loads((tmp_path / "steps.json").read_text())
    assert (done["resnet50"]["status"], done["resnet50"]["said"]) == ("ok", "2 ok")
    verdict = (tmp_path / "verdict.md").read_text()
    assert "- fake fp32 compute throughput b8: " in verdict
    [case] = ET.parse(tmp_path / "junit.xml").iter("testcase")  # noqa: S314
    assert (case.get("name"), list(case)) == ("resnet50", [])
    monkeypatch.setattr(session, "take", lambda *_: pytest.fail("again"))
    assert session.main(words) == 0


def test_no_time_no_module_and_no_end(tmp_path: Path) -> None:
    step = session.Step("tensorrt", 0.2, ("profile",), "no_such_module")
    soon, later = time.monotonic() + 1, time.monotonic() + 1e4
    assert session.take(step, tmp_path, soon, False)["status"] == "left out"
    assert (
        session.take(step, tmp_path, later, False)["said"] == "none of no_such_module is installed"
    )
    hanging: Any = [sys.executable, "-c", "import signal, time; signal.pause()"]
    process = subprocess.Popen(hanging, stderr=subprocess.DEVNULL, start_new_session=True)
    assert session.ended(process, 0.2) is None
    assert process.poll() is not None


def test_failures_are_told_and_fail(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, (
        {"header": {}},
        {"record": {"status": "ok", "cell": {"backend": "a"}}},
        {"record": {"status": "failed", "reason": "CUDA <broke>", "cell": {"backend": "b"}}},
    ))))  # fmt: skip
    counts, said = session.told(tmp_path)
    assert (counts["failed"], said) == (1, "1 ok, 1 failed; b: CUDA <broke>")
    session.write({"x": {"status": "failed", "seconds": 1, "said": said}}, tmp_path)
    [failure] = ET.parse(tmp_path / "junit.xml").iter("failure")  # noqa: S314
    assert failure.get("message") == said
    assert (
        "| x | failed | 1 | 1 ok, 1 failed; b: CUDA <broke> |"
        in (tmp_path / "verdict.md").read_text()
    )


def test_wheels_in_parts_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, site = tmp_path / "given", tmp_path / "out/site"
    given.mkdir()
    site.parent.mkdir()
    for number in range(12):
        (given / f"big.whl.{number}").write_bytes(bytes([number]))
    (given / "small.whl").write_bytes(b"small")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    session.install(given, site)
    assert (site.parent / "wheels/big.whl").read_bytes() == bytes(range(12))
    assert (site.parent / "wheels/small.whl").read_bytes() == b"small"
