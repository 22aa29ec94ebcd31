"""A backend that really does what can go wrong: option ``at`` says where, ``how`` says what.

Registered as the backends of ``tests/fakes`` are, on which it builds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gpubench_fakes import Fake, FakeSession

from gpubench.machine.processes import session_members
from gpubench.suite.types import Cell, Option

if TYPE_CHECKING:
    from gpubench.backends.base import Device, Facts, Images, Logits

AT = (
    "",
    "unsupported",
    "prepare",
    "open",
    "enter",
    "copy_in",
    "run",
    "sync",
    "copy_out",
    "facts",
    "counters",
    "exit",
)
PATIENCE_S = 100.0
STOPPED: list[int] = []


class Broken(Fake):
    name = "broken"
    options: tuple[Option, ...] = (
        Option(name="at", kind="str", default="", choices=AT, help="where it breaks"),
        Option(name="how", kind="str", default="raise", help="a key of DEEDS, or a word of _maybe"),
        Option(name="latency_us", kind="float", default=0.0, help="of every run()"),
    )
    preload: tuple[str, ...] = ("gpubench_broken_preload",)

    def unsupported(self, cell: Cell) -> str | None:
        _maybe(cell, "unsupported")
        return None

    def prepare(self, cell: Cell, model: Any, cache: Any) -> Path:
        _maybe(cell, "prepare")

        def make(at: Path) -> None:
            with Path(os.environ["GPUBENCH_TEST_MADE"]).open("a") as made:
                made.write("made\n")
            time.sleep(0.3)  # a rival that shares the cache comes meanwhile
            (at / "artefact").write_bytes(bytes(1000))

        entry: Path = cache.get_or_make("broken", {"options": sorted(cell.options)}, make)
        return entry

    def open(self, cell: Cell, artefact: Path, device: Device) -> BrokenSession:
        (artefact / "artefact").read_bytes()
        if cell.options.get("how") == "vanish":
            (artefact / "artefact").unlink()
        _maybe(cell, "open")
        return BrokenSession(cell, device)


class BrokenProbe(Fake):
    name = "broken-probe"

    def probe(self) -> Facts:
        raise RuntimeError("broken: probe")


class BrokenSession(FakeSession):
    def __init__(self, cell: Cell, device: Device) -> None:
        self._cell = cell
        super().__init__(cell, device)

    @property
    def facts(self) -> Facts:
        _maybe(self._cell, "facts")
        return self._facts

    @facts.setter
    def facts(self, facts: Facts) -> None:
        self._facts = facts

    def __enter__(self) -> Self:
        _maybe(self._cell, "enter")
        return self

    def __exit__(self, *_: object) -> None:
        _maybe(self._cell, "exit")

    def copy_in(self, images: Images) -> None:
        _maybe(self._cell, "copy_in")
        super().copy_in(images)

    def run(self) -> None:
        _maybe(self._cell, "run")
        super().run()

    def sync(self) -> None:
        _maybe(self._cell, "sync")

    def copy_out(self) -> Logits:
        _maybe(self._cell, "copy_out")
        return super().copy_out()

    def counters(self) -> dict[str, int]:
        _maybe(self._cell, "counters")
        return {}


def _maybe(cell: Cell, where: str) -> None:
    if cell.options.get("at") == where:
        deed = str(cell.options.get("how", "raise"))
        if deed == "stall":
            deed = "loop" if where == "run" else "hang"
        if deed == "kill-one-waiting":
            _kill_one_waiting(cell)
        else:
            DEEDS[deed]()


def _raise() -> None:
    raise RuntimeError("broken: told to raise")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("broken: no words")


def _raise_unspeakable() -> None:
    raise Unspeakable


def _raise_surrogate() -> None:
    raise RuntimeError("broken: \udcff is no text")


def _leave() -> None:
    sys.exit(0)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segv() -> None:
    ctypes.string_at(0)


def _loop() -> None:
    while True:
        pass


def _hang() -> None:
    ctypes.PyDLL(None).pause()  # in native code, and holding the interpreter's lock


def _kill_agent() -> None:
    os.kill(os.getsid(0), signal.SIGKILL)  # it leads the session
    time.sleep(PATIENCE_S)


def _device_memory() -> None:
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def _allocate() -> None:
    import numpy as np

    np.empty(64 << 30, np.uint8)


def _allocate_natively() -> None:
    new = ctypes.CDLL("libstdc++.so.6")._Znwm  # operator new(std::size_t): throws bad_alloc
    new.argtypes, new.restype = [ctypes.c_size_t], ctypes.c_void_p
    new(64 << 30)


def _fill_memory() -> None:
    kept = []
    while sum(map(len, kept)) < 4 << 30:
        kept.append(bytearray(os.urandom(1 << 20) * 16))


def _litter() -> None:
    """Leave what can be left, and die."""
    memory = SharedMemory(create=True, size=1000)
    Path(tempfile.mkdtemp(), "left").write_text(memory.name)
    for apart in (False, True):
        subprocess.Popen(["sleep", "600"], start_new_session=apart)
    _kill()


def _kill_one_waiting(cell: Cell) -> None:
    """One replica dies while it waits at the barrier; the others come when it has died."""
    chosen = Path(tempfile.gettempdir()) / cell.key
    try:
        with chosen.open("x") as file:
            file.write(str(os.getpid()))
        threading.Timer(0.3, _kill).start()
    except FileExistsError:
        _await(lambda: not Path("/proc", chosen.read_text() or "self").exists())


def _heat() -> None:
    """Spoil so many attempts as the test says: each goes on when NVML has told of the heat."""
    state = Path(os.environ["GPUBENCH_FAKE_NVML"])
    left = int((state / "heat").read_text())
    if left:
        (state / "heat").write_text(str(left - 1))
        (state / "hot").touch()
        _await((state / "seen").exists)
        (state / "hot").unlink()
        (state / "seen").unlink()


def _stop(everybody: bool = False) -> None:
    """Stop this process, or the agent with all that it made, once, in so many as the test says."""
    left = Path(os.environ["GPUBENCH_TEST_MADE"]).with_name("stops")
    if not STOPPED and (attempts := int(left.read_text())):
        STOPPED.append(os.getpid())
        left.write_text(str(attempts - 1))
        pids = session_members(os.getsid(0)) if everybody else [os.getpid()]
        whom = " ".join(map(str, pids))
        words = f"kill -STOP {whom}; sleep 0.7; kill -CONT {whom}"
        subprocess.run(["sh", "-c", words], start_new_session=True, check=False)


def _work() -> None:
    """Half a millisecond of a core, however long that takes."""
    end = time.thread_time_ns() + 500_000
    while time.thread_time_ns() < end:
        pass


def _lose_gpu() -> None:
    state = Path(os.environ["GPUBENCH_FAKE_NVML"])
    (state / "lost").touch()
    _await((state / "seen").exists)


def _lose_gpu_and_raise() -> None:
    _lose_gpu()
    raise RuntimeError("CUDA error: unspecified launch failure")


def _await(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("broken: what was waited for did not come")
        time.sleep(0.005)


DEEDS: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "unspeakable": _raise_unspeakable,
    "surrogate": _raise_surrogate,
    "leave": _leave,
    "kill": _kill,
    "segv": _segv,
    "loop": _loop,
    "hang": _hang,
    "kill-agent": _kill_agent,
    "device-memory": _device_memory,
    "allocate": _allocate,
    "allocate-natively": _allocate_natively,
    "fill-memory": _fill_memory,
    "litter": _litter,
    "heat": _heat,
    "stop": _stop,
    "stop-everybody": partial(_stop, everybody=True),
    "work": _work,
    "lose-gpu": _lose_gpu,
    "lose-gpu-and-raise": _lose_gpu_and_raise,
    "nothing": lambda: None,
    "vanish": lambda: None,
}
