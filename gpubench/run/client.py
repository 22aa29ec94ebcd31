"""The driver's end of an agent: start it, ask it, and leave nothing of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from gpubench.errors import GpubenchError
from gpubench.run.messages import Failure, Preload, Preloaded, Progress, Reply, Request

_START = "from gpubench.run.agent import main; main({}, {})"
# Not "-m": forked workers would import the agent's module a second time, as their __main__.

ENVIRON = {
    # NumPy's BLAS serves the answers' check only; its idle threads must not spin beside us.
    "OPENBLAS_NUM_THREADS": "1",
    # CUDA counts devices as NVML does, on a machine with different ones too.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # Asking torch whether there is a GPU must not initialise CUDA before workers are forked.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Defaults of the agent's environment; what the user has set wins."""

OnProgress = Callable[[Progress], None]


class AgentClient:
    """A running agent. Restarts it when it died; every process it made ends with it."""

    def __init__(self, modules: list[str], cache_dir: Path, log: Path) -> None:
        self._preload = Preload(modules, str(cache_dir))
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._to = self._from = -1
        self._pending = b""

    def start(self) -> Preloaded:
        """Start the agent and let it import what workers need."""
        requests_in, self._to = os.pipe()
        self._from, replies_out = os.pipe()
        environ = ENVIRON | os.environ
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(requests_in, replies_out)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(requests_in, replies_out),
                start_new_session=True,  # Ctrl-C reaches the driver only, which then ends us
                env=environ,
            )
        os.close(requests_in)
        os.close(replies_out)
        self._pending = b""
        reply = self._exchange(self._preload, None)
        if not isinstance(reply, Preloaded):
            self.stop()
            words = reply.reason if isinstance(reply, Failure) else repr(reply)
            raise GpubenchError(f"the agent did not start: {words}; see {self._log}")
        return reply

    def ask(self, request: Request, progress: OnProgress | None = None) -> Reply:
        """The answer to ``request``; a dead agent is a Failure, and the next call restarts it."""
        if self._process is None:
            self.start()
        return self._exchange(request, progress)

    def _exchange(self, request: Request, progress: OnProgress | None) -> Reply:
        try:
            data = msgspec.json.encode(request) + b"\n"
            while data:
                data = data[os.write(self._to, data) :]
            while True:
                reply: Reply = msgspec.json.decode(self._line(), type=Reply)
                if not isinstance(reply, Progress):
                    return reply
                if progress is not None:
                    progress(reply)
        except (BrokenPipeError, EOFError):
            self.stop()
            return Failure("crash", f"the agent died; its log is {self._log}")

    def _line(self) -> bytes:
        while b"\n" not in self._pending:
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise EOFError
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def stop(self) -> None:
        """Kill the agent and every process of its session."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for _ in range(3):  # a process may be forking while the list is read
            for pid in session_members(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()
        os.close(self._to)
        os.close(self._from)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()


def session_members(session: int) -> list[int]:
    """PIDs of the processes in a Unix session, zombies left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[3] == str(session) and fields[0] != "Z":
                members.append(int(entry.name))
    return members
