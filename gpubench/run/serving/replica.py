"""One replica: a session and the batches that it is asked for, here or in a process of its own.

There batches come and go in shared memory, words by a pipe. It is started afresh, not forked (the
caller may have threads, or a CUDA context), and not by `multiprocessing`, which would run the
caller's main module a second time. The memory has no name: it is gone with the last process that
has it.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from gpubench.backends import base
from gpubench.errors import CellFailed, GpubenchError, raised, told
from gpubench.machine.processes import die_with_parent, signal_name
from gpubench.machine.software import environ_of_python
from gpubench.run.serving import compatibility
from gpubench.suite.types import Cell
from gpubench.workload.data.preprocess import Spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.data.preprocess import Inputs

_START = "from gpubench.run.serving.replica import main; main({}, {})"
_BATCH, _LEAVE = b"batch", b"leave"
OPEN_S = 600.0
"""How long a replica may take to open its session and compute a first batch."""
EXIT_S = 5.0
"""... and to close it, before it is killed."""
GRACE_S = 1.0
"""... and to answer when its time is over: both processes may have been stopped meanwhile."""
ENVIRON = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""So that CUDA counts devices as NVML does; what the user has set wins."""


class Died(GpubenchError):
    """A replica's process has ended, or took too long and was given up."""


class Setup(Struct, frozen=True, kw_only=True):
    """All that a replica needs to know."""

    cell: Cell
    artefact: str
    spec: Spec
    outputs: int
    replica: int
    cores: tuple[int, ...]
    """To be pinned to; ()."""
    timeout_s: float
    """The longest that a batch may take."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a batch."""
        return (self.cell.batch_size, *self.spec.shape)


class Local:
    """A session in the calling thread, which is pinned: thread pools inherit that.

    Used, and closed, by the thread that opened it only.
    """

    def __init__(self, setup: Setup, *, own_process: bool = False) -> None:
        import numpy as np

        if setup.cores:
            os.sched_setaffinity(0, setup.cores)  # of this thread
        cell = setup.cell
        device = compatibility.device(cell, setup.replica, setup.cores, own_process=own_process)
        backend = base.get(cell.backend)
        self._session = base.open_session(backend, cell, Path(setup.artefact), device)
        self._session.__enter__()
        self.facts = self._session.facts
        self._expected = (cell.batch_size, setup.outputs)
        self._padded = np.zeros(setup.shape, setup.spec.dtype)
        try:
            self.run(self._padded)  # what is done at first only is done by now
        except BaseException:
            self.close()
            raise

    def run(self, rows: Inputs) -> NDArray[np.float32]:
        """(n, *spec.shape) -> logits (n, outputs); a batch that is not full gets zeros."""
        count, session = len(rows), self._session
        if count < len(self._padded):
            self._padded[:count] = rows
            self._padded[count:] = 0
            rows = self._padded
        session.copy_in(rows)
        session.run()
        session.sync()
        logits = session.copy_out()
        if logits.shape != self._expected:
            raise CellFailed("error", f"logits are {logits.shape}, not {self._expected}")
        return logits[:count]

    def attach(self, rows: Inputs) -> None:
        """`run` is going to be given this very array: it may be read without a copy."""
        self._session.attach([rows])

    def close(self) -> None:
        """Leave the session; in the thread that opened it, whose settings it restores."""
        self._session.__exit__(None, None, None)


class Failed(Struct, frozen=True, tag=True):
    """An exception on its way to whoever asked; ``kind`` as in `gpubench.errors.CellFailed`."""

    kind: str
    reason: str
    remedy: str = ""


class Ready(Struct, frozen=True, tag=True):
    """A replica has opened its session, or computed a batch."""

    facts: dict[str, object] = {}


ENCODER = msgspec.json.Encoder(enc_hook=str)
"""A backend's facts may hold a library's own types: their text will do."""


class Remote:
    """The near end of a `Local`. Its thread must live as long: Linux ends the process with it."""

    def __init__(self, setup: Setup) -> None:
        self._name, self._timeout_s = f"replica {setup.replica}", setup.timeout_s
        memory = os.memfd_create("gpubench-serving", os.MFD_CLOEXEC)
        self._pipe, theirs = Pipe()
        try:
            self._rows, self._logits = _arrays(setup, memory, create=True)
            passed = theirs.fileno(), memory
            path = os.pathsep.join(filter(None, sys.path))  # where the caller finds its modules
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(*passed)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a library's chatter is no output of the caller's
                pass_fds=passed,
                env=ENVIRON | environ_of_python() | {"PYTHONPATH": path},
            )
        finally:
            theirs.close()
            os.close(memory)
        try:
            limit_s = max(OPEN_S, setup.timeout_s)
            self.facts = self._ask(msgspec.json.encode(setup), limit_s).facts
        except BaseException:
            self.close()
            raise

    def run(self, rows: Inputs) -> NDArray[np.float32]:
        """As `Local.run`. Raises Died."""
        count = len(rows)
        self._rows[:count] = rows
        self._rows[count:] = 0
        self._ask(_BATCH, self._timeout_s)
        return self._logits[:count].copy()

    def _ask(self, words: bytes, limit_s: float) -> Ready:
        try:
            self._pipe.send_bytes(words)
            if not (self._pipe.poll(limit_s) or self._pipe.poll(GRACE_S)):
                self._process.kill()
                self._process.wait()
                raise Died(f"{self._name} did not answer within {limit_s:g} s, and was ended")
            answer = self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise Died(f"{self._name} died: {self._end()}") from error
        found = msgspec.json.decode(answer, type=Ready | Failed)
        if isinstance(found, Failed):
            raise raised(found.kind, f"{self._name}: {found.reason}", found.remedy)
        return found

    def close(self) -> None:
        """The process has ended when this returns."""
        with suppress(OSError):
            self._pipe.send_bytes(_LEAVE)  # a fork of the caller may hold the pipe open
        self._pipe.close()
        self._end()

    def _end(self) -> str:
        """Wait, or kill; how it ended, in words."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_S)
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        memory = "; was it out of memory?" if -code == signal.SIGKILL else ""
        return f"by {signal_name(code) or f'signal {-code}'}{memory}"


def main(control: int, memory: int) -> None:
    """Open the session and answer until the caller closes its end, or dies."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who then ends us
    pipe = Connection(control)
    try:
        setup = msgspec.json.decode(pipe.recv_bytes(), type=Setup)
    except EOFError:
        return
    rows, logits = _arrays(setup, memory)
    os.close(memory)
    try:
        engine = Local(setup, own_process=True)
        engine.attach(rows)
        pipe.send_bytes(ENCODER.encode(Ready(engine.facts)))
    except Exception as error:  # noqa: BLE001  # whatever a backend raises is the answer
        pipe.send_bytes(ENCODER.encode(Failed(*told(error))))
        return
    done = ENCODER.encode(Ready())
    with suppress(EOFError, OSError):
        while pipe.recv_bytes() == _BATCH:
            try:
                logits[...] = engine.run(rows)
            except Exception as error:  # noqa: BLE001  # as above
                pipe.send_bytes(ENCODER.encode(Failed(*told(error))))
            else:
                pipe.send_bytes(done)
    engine.close()


def _arrays(
    setup: Setup, memory: int, *, create: bool = False
) -> tuple[Inputs, NDArray[np.float32]]:
    """A batch, page-aligned, and its logits."""
    import numpy as np

    dtype, pixels = np.dtype(setup.spec.dtype), math.prod(setup.shape)
    batch = setup.cell.batch_size
    answers = batch * setup.outputs
    at = -(-pixels * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    if create:
        os.ftruncate(memory, at + answers * 4)
    shared = mmap.mmap(memory, at + answers * 4)
    rows = np.frombuffer(shared, dtype, pixels).reshape(setup.shape)
    return rows, np.frombuffer(shared, np.float32, answers, at).reshape(batch, setup.outputs)
