"""What `gpubench inspect` makes of the answer that it gets."""

from __future__ import annotations

from typing import Any

import pytest

from gpubench.errors import InputError
from gpubench.run import inspect as inspecting
from gpubench.run.agent import messages
from gpubench.workload.models.inspection import Inspection


def test_own_code_that_ends_its_process_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    class Agent:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> Agent:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start(self) -> None:
            pass

        def ask(self, _: object) -> messages.Failure:
            return messages.Failure("crash", "replica 0 died after 'start': exit code 3")

    monkeypatch.setattr(inspecting, "AgentClient", Agent)
    (tmp_path / "own.py").write_text("def build(): ...\n")
    model = f"{tmp_path}/own.py:build"
    with pytest.raises(InputError, match=r"own.py:build' ends the process.*: exit code 3"):
        inspecting.inspect({"model": model}, tmp_path)


def test_it_is_one_page_whose_lines_are_not_broken() -> None:
    network = Inspection(
        kind="Net", input_shape=(3, 8, 8), input_dtype="float32", preprocessing="8x8", classes=4,
        answers="logits", parameters=12, precision="fp32", flops=100, sha256="ab",
        modules={"body": 75, "head": 25}, class_names=(), batch=0, opset=None, uncounted="",
        notes=[],
    )  # fmt: skip
    takers = [inspecting.Taker("fast", ["fp32"], ""), inspecting.Taker("none", [], "no " * 90)]
    live = "/a/Net-0123456789ab.cloudpickle"
    found = inspecting.Inspected(live, "file", network, "cpu", takers)
    lines = repr(found).splitlines()
    assert lines[0] == "model       Net (live) (file): Net"
    assert "  75.0%  body" in lines
    assert lines[-2:] == ["fast  fp32", f"none  no: {'no ' * 90}"]
    assert "Net (live)" in found._repr_html_()
