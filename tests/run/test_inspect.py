"""What `gpubench inspect` makes of the answer that it gets."""

from __future__ import annotations

from typing import Any

import pytest

from gpubench.errors import InputError
from gpubench.run import inspect as inspecting
from gpubench.run.agent import messages


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
