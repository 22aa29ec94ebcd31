"""An NVML on the path of the driver and its agent, told by files what to say: see `STATE`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.fake_nvml import FakeNvml, GpuIsLost

STATE = Path(os.environ["GPUBENCH_FAKE_NVML"])
"""``hot``: it throttles. ``lost``: the GPU has fallen off. ``seen`` is made when it was told."""
HOT = 0x40


class Nvml(FakeNvml):
    def __getattr__(self, name: str) -> Any:
        ask = super().__getattr__(name)

        def told(*arguments: Any) -> Any:
            if (STATE / "lost").exists() and name != "nvmlInit":
                (STATE / "seen").touch()
                raise GpuIsLost("GPU is lost")
            if (STATE / "hot").exists() and name == "nvmlDeviceGetCurrentClocksEventReasons":
                (STATE / "seen").touch()
                return HOT
            return ask(*arguments)

        return told


_nvml = Nvml(("Fake GPU", "GPU-fake"))


def __getattr__(name: str) -> Any:
    return getattr(_nvml, name)
