"""Backends that do as they are told, to prove what the harness makes of it.

This directory on ``sys.path`` (or PYTHONPATH) registers them, as an installed package would: see
the dist-info beside this file. ``fake`` answers honestly (`logits`) in no time; its option ``fail``
breaks it in one place. ``fake-missing`` is unavailable everywhere.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gpubench.errors import CellFailed, Unavailable
from gpubench.suite.types import Cell, Option

if TYPE_CHECKING:
    from gpubench.backends.base import Device, Facts, Images, Logits

CLASSES = 10
FAIL = (
    "",
    "unsupported",
    "prepare",
    "unavailable-prepare",
    "open",
    "crowded",
    "spin",
    "hang-open",
    "fallback",
    "copy_in",
    "run",
    "loop-run",
    "oom",
    "sigkill",
    "sigsegv",
    "sync",
    "copy_out",
    "wrong",
    "not-finite",
    "wrong-slot",
    "wrong-class",
    "recompile",
)


def logits(images: Images) -> Logits:
    """(batch, 3, H, W) -> (batch, 10): a fixed linear map of 8 x 8 pooled pixels (H, W >= 8)."""
    import numpy as np

    batch, _, height, width = images.shape
    height, width = height // 8, width // 8
    cut = images[:, :, : 8 * height, : 8 * width].reshape(batch, 3, 8, height, 8, width)
    weights = np.random.default_rng(0).standard_normal((3 * 8 * 8, CLASSES))
    answer: Logits = (cut.mean((3, 5)).reshape(batch, -1) @ weights).astype(np.float32)
    return answer


class Fake:
    """Computes `logits` on the host; needs no model file and no runtime."""

    name = "fake"
    summary = "for tests: honest, instant, and broken on demand"
    options: tuple[Option, ...] = (
        Option(
            name="latency_us",
            kind="float",
            default=0.0,
            minimum=0.0,
            help="every run() is busy for this long",
        ),
        Option(
            name="slow_one",
            kind="float",
            default=1.0,
            minimum=1.0,
            help="one replica, whichever opens first, is busy so many times longer",
        ),
        Option(name="fail", kind="str", default="", choices=FAIL, help="where it breaks"),
    )
    preload: tuple[str, ...] = ()
    roofline = False  # torch, which measures peaks, is not imported for it

    def probe(self) -> Facts:
        return {"fake": "1.0"}

    def unsupported(self, cell: Cell) -> str | None:
        if cell.input != "float32":
            return "fake: it computes from float32, and normalises nothing"
        return "fake: told to support nothing" if _told(cell, "unsupported") else None

    def prepare(self, cell: Cell, model: Any, cache: Any) -> Path:
        if _told(cell, "prepare"):
            raise RuntimeError("fake: told to fail in prepare")
        if _told(cell, "unavailable-prepare"):
            raise Unavailable("fake: this machine lacks it", "buy one")
        return Path(__file__)

    def open(self, cell: Cell, artefact: Path, device: Device) -> FakeSession:
        if _told(cell, "open"):
            raise RuntimeError("fake: told to fail in open")
        if _told(cell, "fallback"):
            raise CellFailed("fallback", "fake: something else would run")
        if _told(cell, "hang-open"):
            time.sleep(3600)
        return FakeSession(cell, device)


class FakeSession:
    def __init__(self, cell: Cell, device: Device) -> None:
        self.facts: Facts = {"device": str(device), "pid": os.getpid()}
        self._fail = str(cell.options.get("fail", ""))
        busy_us = float(cell.options.get("latency_us", 0.0)) + _busy_us(cell.model)
        self._busy_ns = round(busy_us * 1000)
        self._runs = 0
        if (slow := float(cell.options.get("slow_one", 1.0))) > 1 and self._first(cell.key):
            self._busy_ns = round(self._busy_ns * slow)
        if self._fail == "crowded" and not self._first("crowded"):
            raise MemoryError("fake: there is room for one")
        if self._fail == "spin":
            threading.Thread(target=_spin, daemon=True).start()

    def _first(self, name: str) -> bool:
        """Whether no other session is open that was told so, in the same run of an agent."""
        self._lock = (Path(tempfile.gettempdir()) / name).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def copy_in(self, images: Images) -> None:
        self._break("copy_in")
        self._images = images.copy()

    def run(self) -> None:
        self._runs += 1
        if self._fail:
            self._break("run")
        if self._busy_ns:
            end = time.perf_counter_ns() + self._busy_ns
            while time.perf_counter_ns() < end:
                pass

    def sync(self) -> None:
        self._break("sync")

    def copy_out(self) -> Logits:
        import numpy as np

        self._break("copy_out")
        answer = logits(self._images)
        if self._fail == "wrong":
            answer = np.roll(answer, 1, axis=1)
        if self._fail == "wrong-class":
            threes = answer.argmax(axis=1) == 3
            answer[threes] = np.roll(answer[threes], 1, axis=1)
        if self._fail == "not-finite":
            answer[-1, 0] = np.nan
        if self._fail == "wrong-slot":
            answer[-1] = np.roll(answer[-1], 1)
        return answer

    def counters(self) -> dict[str, int]:
        told = self._fail == "recompile"
        return {"recompilations": self._runs if told else 0, "compiled_at_open": int(told)}

    def _break(self, where: str) -> None:
        if self._fail == where:
            raise RuntimeError(f"fake: told to fail in {where}")
        if where != "run":
            return
        if self._fail == "oom":
            raise MemoryError("fake: told to run out of memory")
        if self._fail == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fail == "sigsegv":
            os.kill(os.getpid(), signal.SIGSEGV)
        while self._fail == "loop-run":
            pass


class Missing(Fake):
    """What this machine never has."""

    name = "fake-missing"

    def probe(self) -> Facts:
        raise Unavailable("fake: not on this machine", "pip install a-machine-that-has-it")


def _busy_us(model: str) -> float:
    """What a model's file says of itself: 'busy_us=300' somewhere in it."""
    file = Path(model)
    said = re.search(rb"busy_us=(\d+)", file.read_bytes()) if file.is_file() else None
    return float(said[1]) if said else 0.0


def _spin() -> None:
    while True:
        pass


def _told(cell: Cell, where: str) -> bool:
    return cell.options.get("fail") == where
