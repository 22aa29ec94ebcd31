"""One process, one replica, one task. Forked by the agent's server; ends when its task does."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from gpubench import __version__, errors, plugins
from gpubench.backends import base
from gpubench.machine import environment
from gpubench.machine.cores import pin
from gpubench.machine.processes import die_with_parent, watch_stops
from gpubench.run.agent import messages
from gpubench.run.agent.measure_task import Barrier, _device, _measure, _show
from gpubench.run.agent.shared_job import Queue
from gpubench.suite.types import told

NOT_SERVED = ("weights", "reference", "images")
"""Cache entries that belong to the benchmark; serving the network would not make them."""
OOM_SCORE = 500
"""Where memory ends, the kernel is to end a worker and not the driver, which holds the results."""


def main(
    connection: Connection,
    request: messages.Request,
    cache_dir: str,
    replica: int,
    queue: Queue | None,
) -> None:
    """Do what is asked and send the answer; never raises. ``queue``: of a job's units."""
    die_with_parent()
    watch_stops()
    os.setpgid(0, 0)  # so that the agent can end this process with all its children
    faulthandler.enable()  # where native code crashed: see postmortem
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123  # a library that reads gets EOF

    def send(message: messages.WorkerMessage) -> None:
        # A backend's facts may hold a library's own version type: its text will do.
        connection.send_bytes(msgspec.json.encode(message, enc_hook=str))

    def barrier(name: str, *told: float) -> messages.Go:
        send(messages.AtBarrier(name, *told))
        return msgspec.json.decode(connection.recv_bytes(), type=messages.Go)

    try:
        send(_answer(request, cache_dir, replica, barrier, queue))
    except Exception as error:  # noqa: BLE001  # anything a backend raises is this task's result
        send(failure(error))
    connection.close()
    with suppress(OSError):  # the log's disk may be full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # a runtime's exit handlers must not hang or crash a finished task


def failure(error: BaseException) -> messages.Failure:
    """What an exception means for the cell."""
    if isinstance(error, errors.GpubenchError):
        return messages.Failure(error.kind, _text(error), _text(error.remedy))
    if lack := plugins.lacking(error):
        return messages.Failure(lack.kind, lack.reason, lack.remedy)
    words = _text(f"{type(error).__name__}: {_text(error)}".strip())[:2000]
    made = errors.CellFailed("out-of-memory" if isinstance(error, MemoryError) else "error", words)
    if made.kind == "out-of-memory":
        return messages.Failure(made.kind, words)
    with suppress(OSError):  # the log's disk may be full
        traceback.print_exception(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{words} ({Path(last.filename).name}:{last.lineno})"
    return messages.Failure("error", place, made.remedy)


def _text(words: object) -> str:
    """As text that can be sent, whatever a backend's exception makes of itself."""
    try:
        return told(str(words).encode(errors="replace").decode())
    except Exception as error:  # noqa: BLE001  # its __str__ is foreign code too
        return f"({type(error).__name__} in its __str__)"


def _answer(
    request: messages.Request, cache_dir: str, replica: int, barrier: Barrier, queue: Queue | None
) -> messages.WorkerMessage:
    if isinstance(request, messages.Preload):
        from gpubench.run.agent import forkserver_preload

        here = environment.collect([]) if request.environment else {}
        return messages.Preloaded(
            forkserver_preload.ERRORS,
            forkserver_preload.SECONDS,
            messages.PROTOCOL,
            __version__,
            here,
        )
    if isinstance(request, messages.Measure):
        return _measure(request, replica, barrier, queue)
    if isinstance(request, messages.SplitCores):
        from gpubench.pipeline import core_split

        asked = request.measure
        at = (Path(asked.artefact), Path(asked.reference))
        return core_split.find_out(asked.cell, *at, _device(asked, 0))
    if isinstance(request, messages.Gauge):
        return _gauge(request)
    from gpubench.cache import Cache, recipe_of
    from gpubench.workload.data import datasets
    from gpubench.workload.models import given_input, registry

    cache = Cache(Path(cache_dir))
    if isinstance(request, messages.Count):
        from gpubench.workload.models import flops

        return messages.Counted(flops.of(registry.resolve(request.workload, cache), cache))
    if isinstance(request, messages.Inspect):
        from gpubench.workload.models import inspection

        return messages.Inspected(inspection.inspect(request.workload, cache))
    if isinstance(request, messages.BuildReference):
        from gpubench.workload import reference

        path = reference.build(request.workload, request.policy, cache, request.input)
        contents = reference.contents(request.workload, path)
    elif isinstance(request, messages.Prepare):
        pin(request.cores)
        cell = request.cell
        network = given_input.given(registry.resolve(cell.workload, cache), cell.input, cache)
        if network.fixed_batch not in (None, cell.batch_size):
            network.onnx(network.precision, cell.batch_size)  # says why not
        path = base.get(cell.backend).prepare(cell, network, cache)
        contents = {"model": network.identity} if registry.is_file(cell.workload) else {}
        made = [entry.path for entry in cache.log if entry.kind == "int8"]
        if made and (cell.calibration or datasets.is_path(cell.images)):
            contents["calibration"] = recipe_of(made[-1])["images"]
    else:
        raise TypeError(f"no task for a worker: {type(request).__name__}")
    ns: dict[str, int] = {}
    for entry in {entry.path: entry for entry in cache.log}.values():
        if entry.kind in NOT_SERVED and isinstance(request, messages.Prepare):
            continue
        ns[entry.kind] = ns.get(entry.kind, 0) + round(entry.seconds * 1e9)
    return messages.Prepared(str(path), ns, contents)


def _gauge(request: messages.Gauge) -> messages.Gauged:
    from gpubench.measure import roofline_peaks

    if request.device == "cuda":
        _show(request.uuid)
        return messages.Gauged(*roofline_peaks.cuda(request.types, request.memory))
    return messages.Gauged(*roofline_peaks.cpu(request.cores, request.types, request.memory))
