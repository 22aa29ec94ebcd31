"""The driver's end of an agent: start it, ask it, and leave nothing of it behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from secrets import token_hex
from select import select
from tempfile import gettempdir
from time import monotonic, time
from typing import Protocol, Self

import msgspec

from gpubench import __version__
from gpubench.cache import Cache
from gpubench.errors import GpubenchError, InputError
from gpubench.machine.import_check import try_imports
from gpubench.machine.postmortem import Inquest
from gpubench.machine.processes import SCRATCH, end_session
from gpubench.machine.software import environ_of_python
from gpubench.machine.telemetry.pauses import Pauses
from gpubench.run.agent import messages

_START = f"""
import fcntl, os
os.mkdir(os.environ[{SCRATCH!r}], 0o700)
try:  # held for as long as we live: see `sweep`
    fcntl.flock(os.open(os.environ[{SCRATCH!r}], os.O_RDONLY), fcntl.LOCK_SH)
except OSError:
    pass
from gpubench.run.agent import main
main({{}}, {{}})
"""
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

LONGEST_TEMPDIR = 50
"""A Unix socket's path has 107 bytes: ours is /gpubench-agent-(8), multiprocessing's is
/pymp-(8)/listener-(8)."""
YOUNG_S = 60.0
"""Before this age a directory may be about to be locked."""

OnProgress = Callable[[messages.Progress], None]


START_LIMIT_S = 300.0
IMPORT_LIMIT_S = 120.0
KILL_LIMIT_S = 10.0
STOP_S = 2.0
"""How long an agent may take to end by itself; one that hangs is killed."""
DRIVER_LOOK_S = 10.0
"""The driver looks for pauses less often than agents do: only for the sake of its time-outs."""
GRACE_S = 60.0
"""How much longer than its own time-outs an agent may take before it is given up."""


def limit_s(request: messages.Request) -> float:
    """When an agent that has not answered ``request`` must be hanging."""
    if isinstance(request, messages.Preload):
        return 2 * START_LIMIT_S + IMPORT_LIMIT_S * len(request.modules)
    asked = request.measure if isinstance(request, messages.Begin) else request
    splits = isinstance(asked, messages.Measure) and asked.cell.boundary == "pipeline"
    trials = 2 if splits else 1  # `SplitCores` comes before it
    return trials * messages.timeout_s(request) + GRACE_S


class Asked(Protocol):
    """What measures for the driver: an agent, or several nodes as one."""

    def ask(self, request: messages.Request, progress: OnProgress | None = None) -> messages.Reply:
        """The answer to ``request``."""


class AgentClient:
    """A running agent. Restarts it when it died; every process it made ends with it."""

    def __init__(
        self,
        modules: list[str],
        cache_dir: Path,
        log: Path,
        python: Path | None = None,
        directory: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``python``: another interpreter, which has a gpubench of its own; ``directory``: another
        one to work in; ``environ``: defaults of its environment, beside `ENVIRON`."""
        self._modules, self._cache_dir = modules, str(cache_dir)
        self._log = log
        self._python, self._other = python or Path(sys.executable), python is not None
        self._directory = directory
        self._environ = ENVIRON | dict(environ or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._to = self._from = -1
        self._pending = b""
        self._end, self._pauses = 0.0, Pauses(DRIVER_LOOK_S)
        self._over = False
        self._held = ExitStack()
        """The cache: artefacts stay for as long as somebody may be asked to measure them."""

    def start(self) -> messages.Preloaded:
        """Start the agent and let it import what workers need.

        A module whose import raises, crashes or hangs is left out and told in ``errors``.
        """
        reply = self._start()
        errors: dict[str, str] = {}
        if not isinstance(reply, messages.Preloaded) and not self._over:
            other = self._python if self._other else None
            for module in self._modules:
                found = try_imports([module], IMPORT_LIMIT_S, other)[module]
                errors |= {module: found["error"]} if "error" in found else {}
            self._modules = [module for module in self._modules if module not in errors]
            reply = self._start()  # once more in any case: it may have been killed from outside
        if isinstance(reply, messages.Preloaded):
            if reply.protocol != messages.PROTOCOL:
                raise InputError(
                    f"{self._python}: its gpubench {reply.version} speaks another protocol "
                    f"({reply.protocol}, here {messages.PROTOCOL}); "
                    f"install gpubench {__version__} there"
                )
            return msgspec.structs.replace(reply, errors=errors | reply.errors)
        words = reply.reason if isinstance(reply, messages.Failure) else repr(reply)
        raise GpubenchError(f"the agent did not start: {words}; see {self._log}")

    def launch(self) -> None:
        """Start the process and its imports, and return at once; `start` waits for them.

        To be called by a thread that lives as long as the agent: Linux ends the agent with it.
        """
        self._inquest = Inquest(log=self._log)
        requests_in, self._to = os.pipe()
        self._from, replies_out = os.pipe()
        # What killed workers leave in it goes with it. The agent makes it: it also removes it when
        # the driver was killed.
        temp = _short(gettempdir())
        sweep(temp)
        self._scratch = scratch = f"{temp}/gpubench-agent-{token_hex(4)}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, "-c", _START.format(requests_in, replies_out)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(requests_in, replies_out),
                cwd=self._directory,
                start_new_session=True,  # Ctrl-C reaches the driver only, which then ends us
                env=self._environ
                | environ_of_python(self._other)
                | {"TMPDIR": scratch, SCRATCH: scratch},
            )
        os.close(requests_in)
        os.close(replies_out)
        self._pending = b""
        with suppress(BrokenPipeError):  # it died: reading the answer tells
            self._send(messages.Preload(self._modules, self._cache_dir, environment=self._other))

    def _start(self) -> messages.Reply:
        if self._process is None:
            self.launch()
        *_, reply = self._replies(monotonic() + START_LIMIT_S)
        if not isinstance(reply, messages.Preloaded):
            self.stop()
        return reply

    def ask(self, request: messages.Request, progress: OnProgress | None = None) -> messages.Reply:
        """The answer to ``request``; a dead agent is a Failure, and the next call restarts it."""
        for reply in self.replies(request):
            if isinstance(reply, messages.Progress) and progress is not None:
                progress(reply)
        return reply

    def replies(self, request: messages.Request) -> Iterator[messages.Reply]:
        """Progress, and at last the answer, as in `ask`."""
        if self._over:
            yield messages.Failure("crash", "the run has ended")
            return
        if self._process is None:
            self.start()
        end = monotonic() + limit_s(request)
        with suppress(BrokenPipeError):
            self._send(request)
        yield from self._replies(end)

    def _send(self, request: messages.Request) -> None:
        data = msgspec.json.encode(request) + b"\n"
        while data:
            data = data[os.write(self._to, data) :]

    def _replies(self, end: float) -> Iterator[messages.Reply]:
        self._end = end
        try:
            while True:
                reply: messages.Reply = msgspec.json.decode(self._line(), type=messages.Reply)
                yield reply
                if not isinstance(reply, messages.Progress):
                    return
        except EOFError:
            if self._process is not None:
                with suppress(subprocess.TimeoutExpired):  # it is dying: of what?
                    self._process.wait(KILL_LIMIT_S)
            kind, why = self._inquest.verdict(self.stop())
            yield messages.Failure(kind, f"the agent died: {why}; its log is {self._log}")
        except TimeoutError:
            self.stop()
            yield messages.Failure("timeout", f"the agent hung; its log is {self._log}")

    def _line(self) -> bytes:
        while b"\n" not in self._pending:
            ready, late_s = self._pauses.wait(
                lambda seconds: select([self._from], [], [], seconds)[0], self._end - monotonic()
            )
            self._end += late_s  # the agent could not go on either
            if not ready and monotonic() < self._end:
                continue
            if not ready:
                raise TimeoutError
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise EOFError
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    @property
    def running(self) -> bool:
        """Whether there is a process: none before the start and after it died or hung."""
        return self._process is not None

    def kill(self) -> None:
        """End it for good from another thread: the one that waits for its answer cleans up."""
        self._over = True
        if (process := self._process) is not None:
            process.kill()

    def stop(self) -> int | None:
        """End the agent and every process that it made; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.terminate()  # it ends all that it made, even if we are killed meanwhile
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        end_session(process.pid, self._scratch)
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return process.wait()

    def __enter__(self) -> Self:
        self._held.enter_context(Cache(Path(self._cache_dir)).hold())
        return self

    def __exit__(self, *_: object) -> None:
        with self._held:
            self.stop()


def _short(directory: str) -> str:
    """Where multiprocessing can make its sockets."""
    return directory if len(directory.encode()) <= LONGEST_TEMPDIR else "/tmp"  # noqa: S108


def sweep(temp: str) -> None:
    """Remove from ``temp`` what agents left that were killed, and whose drivers were, too."""
    import fcntl  # not on Windows, which only reads

    for place in Path(temp).glob("gpubench-agent-*"):
        with suppress(OSError), ExitStack() as held:
            found = place.lstat()
            if found.st_uid == os.geteuid() and time() - found.st_mtime > YOUNG_S:
                lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                held.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
