"""Backend ``bundled``: ONNX Runtime, of which one ``run()`` is several: exact extra work.

This directory on ``sys.path`` and PYTHONPATH registers it. Images/s of its records count runs as if
a bundle were one batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpubench.backends.base import Device
from gpubench.backends.onnxruntime import OnnxRuntime
from gpubench.suite.types import Cell, Option

RUNS = 20


class Bundled(OnnxRuntime):
    name = "bundled"
    options = (
        *OnnxRuntime.options,
        Option(name="runs", kind="int", default=RUNS, help="that count as one", minimum=1),
    )

    def open(self, cell: Cell, artefact: Path, device: Device) -> Any:
        session: Any = super().open(cell, artefact, device)
        run, sync, times = session.run, session.sync, int(cell.options.get("runs", RUNS))

        def run_and_wait() -> None:
            for _ in range(times):
                run()
                sync()

        session.run = run_and_wait
        return session
