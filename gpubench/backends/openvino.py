"""OpenVINO on Intel and AMD CPUs, and on Intel GPUs by option."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench import plugins
from gpubench.backends.base import Backend, Session, alike
from gpubench.errors import CellFailed, Unavailable
from gpubench.suite.types import Cell, Option, When
from gpubench.workload.models import quantization

if TYPE_CHECKING:
    import openvino

    from gpubench.backends.base import Device, Facts, Images, Logits
    from gpubench.cache import Cache
    from gpubench.workload.models.base import Model

_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Precision -> OpenVINO's inference precision."""
_RESTS = ("fp32", "bf16")
"""What it can be of what int8 leaves."""
_UNITS = {"bf16": "AVX512_BF16 or AMX", "fp16": "AMX_FP16; or bf16 where it has that"}
"""Precision -> CPUs that have it."""
_SEVERAL: When = {"scenario": ("throughput",)}
"""Where more than one batch is in flight; elsewhere each is waited for, and streams lie idle."""


class OpenVINO(Backend):
    """Compiled models, with a queue of infer requests for throughput."""

    name = "openvino"
    summary = "OpenVINO; CPU (Intel GPU by option); fp32, bf16, fp16, int8"
    options: tuple[Option, ...] = (
        # not searched: a CPU's replicas and cores say nothing of a GPU
        Option.choice("device_name", "OpenVINO's device; GPU is an Intel one", ("CPU", "GPU")),
        Option.choice(
            "hint",
            "performance hint; throughput keeps several batches in flight",
            ("latency", "throughput"),
            search=("latency", "throughput"),
            when=_SEVERAL,
        ),
        Option.whole(
            "num_streams",
            "batches computed at the same time; 0: what the hint chooses",
            0,
            search=(0, 2, 4),
            when=_SEVERAL,
        ),
        *quantization.OPTIONS,
    )
    preload: tuple[str, ...] = ("openvino",)
    reads_onnx = casts_onnx = True

    def probe(self) -> Facts:
        return plugins.installed("openvino")

    def unsupported(self, cell: Cell) -> str | None:
        if cell.device != "cpu":
            return f"OpenVINO has no {cell.device} device (an Intel GPU is device_name = 'GPU')"
        if cell.precision not in (*_TYPES, "int8"):
            return f"{cell.precision}: here OpenVINO runs {', '.join(_TYPES)}, int8"
        if reason := quantization.unsupported(cell, _RESTS):
            return reason
        if cell.precision == "int8" and cell.options.get("device_name", "CPU") != "CPU":
            return "int8: proof that it is computed in exists for OpenVINO's CPU device only"
        streams = int(cell.options.get("num_streams", 0))
        if cell.options.get("device_name", "CPU") == "CPU" and streams > cell.cores > 0:
            return f"{streams} streams do not fit on {cell.cores} core(s): OpenVINO would use fewer"
        return None

    def in_flight(self, cell: Cell, cores: int) -> int:
        """As many as there can be streams; none has less than a core."""
        throughput = cell.options.get("hint") == "throughput"
        return max(1, int(cell.options.get("num_streams", 0)) or (cores if throughput else 1))

    def prepare(self, cell: Cell, model: Model, cache: Cache) -> Path:
        """The ONNX file: in fp32, for int8 with Q/DQ nodes.

        Raises Unavailable when the device cannot do the precision; asked
        for a type that it lacks, OpenVINO would compute in fp32 without a word.
        """
        import openvino

        core, name = openvino.Core(), str(cell.options.get("device_name", "CPU"))
        if name not in core.available_devices:
            raise Unavailable(
                f"OpenVINO finds no {name} device, only {', '.join(core.available_devices)}",
                "install the Intel GPU's compute runtime (intel-opencl-icd), or use 'CPU'",
            )
        own = model.precision == cell.precision == "fp16"  # of a file, whatever it is computed in
        able = core.get_property(name, "OPTIMIZATION_CAPABILITIES")
        wanted = _floating(cell)
        if wanted != "fp32" and wanted.upper() not in able and not own:
            raise Unavailable(
                f"{core.get_property(name, 'FULL_DEVICE_NAME')} has no {wanted} units "
                f"(OpenVINO says: {', '.join(able)})",
                f"use precision fp32, or a CPU with {_UNITS[wanted]}",
            )
        if cell.precision == "int8":
            return quantization.onnx(cell, model, cache, "cpu")
        return model.onnx("fp16" if own else "fp32")

    def open(self, cell: Cell, artefact: Path, device: Device) -> OpenVINOSession:
        """A session on the ONNX file ``artefact``, its shape fixed to the cell's batch."""
        import openvino

        options = cell.chosen(self.options)
        core, wanted = openvino.Core(), _TYPES[_floating(cell)]
        able = core.get_property(str(options["device_name"]), "OPTIMIZATION_CAPABILITIES")
        own = cell.precision == "fp16" and cell.model.endswith(".onnx")
        if own and "FP16" not in able:
            wanted = "f32"  # an fp16 file, see `prepare`; the facts say so
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": wanted,  # unsaid, it is bf16 on a CPU with AMX
            "PERFORMANCE_HINT": str(options["hint"]).upper(),
        }
        if options["device_name"] == "CPU":
            config["ENABLE_CPU_PINNING"] = False  # the replica's process is pinned already
            config["INFERENCE_NUM_THREADS"] = device.threads  # 0: OpenVINO's default
        if options["num_streams"]:
            config["NUM_STREAMS"] = str(options["num_streams"])

        model = core.read_model(artefact)
        model.reshape([cell.batch_size, *model.input(0).partial_shape[1:]])
        compiled = core.compile_model(model, str(options["device_name"]), config)
        facts = _facts(compiled, str(options["device_name"]))
        if facts["precision"] != wanted:
            raise CellFailed(
                "fallback",
                f"asked for {wanted}, OpenVINO computes in {facts['precision']} on "
                f"{facts['device']}; use precision = 'fp32'",
            )
        if cell.precision == "int8":
            facts |= quantization.facts(artefact, _floating(cell)) | _integer(compiled)
        return OpenVINOSession(compiled, facts)


def _floating(cell: Cell) -> str:
    """The precision of a cell; of int8 that of what is not quantised."""
    return quantization.rest_of(cell) if cell.precision == "int8" else cell.precision


class _Ticket:
    """Answers that are wanted of a request."""

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.logits: Logits | None = None
        """Taken out already: the request was needed again."""


class OpenVINOSession(Session):
    """Infer requests used in turn, so that the last one started is known.

    Requests run behind ``run()``; while they do, ``copy_in`` writes to an input that none of them
    reads: there is one more input than requests, and a new one is taken only after a run has used
    the one before.
    """

    def __init__(self, compiled: openvino.CompiledModel, facts: Facts) -> None:
        import numpy as np
        import openvino

        self.facts = facts
        shape = tuple(compiled.input(0).shape)
        count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.facts["requests"] = count
        dtype = compiled.input(0).element_type.to_dtype()
        self._arrays = [np.zeros(shape, dtype) for _ in range(count + 1)]
        self._inputs = [openvino.Tensor(array, shared_memory=True) for array in self._arrays]
        self._requests = [compiled.create_infer_request() for _ in range(count)]
        for request in self._requests:
            request.set_input_tensor(self._inputs[0])
        self._bound = [0] * count
        self._input, self._own, self._used = 0, 0, False
        self._attached: dict[int, int] = {}
        """By the id of an array in ``_arrays``: its place there."""
        self._next = 0
        self._wanted: dict[int, _Ticket] = {}
        """By the place of its request."""
        # of one there is nothing to gain but an overlap with the host's own work
        self.in_flight = count if count > 1 else 0

    def close(self) -> None:
        self.sync()
        self._requests, self._inputs, self._arrays = [], [], []

    def attach(self, arrays: Sequence[Images]) -> bool:
        """The arrays become inputs themselves, behind the own ones; see `Session.attach`."""
        import openvino

        own = len(self._requests) + 1
        if not alike(arrays, self._arrays[0]):
            return False
        self._arrays[own:] = arrays
        self._inputs[own:] = [openvino.Tensor(array, shared_memory=True) for array in arrays]
        self._attached = {id(array): own + i for i, array in enumerate(arrays)}
        self._bound = [-1] * len(self._requests)
        return True

    def copy_in(self, images: Images) -> None:
        if (attached := self._attached.get(id(images))) is not None:
            self._input = attached
            return
        if self._used:
            self._own = (self._own + 1) % (len(self._requests) + 1)
            self._used = False
        self._input = self._own
        self._arrays[self._own][...] = images

    def run(self) -> None:
        """Start the request that has been idle (or running) longest."""
        turn = self._next
        request = self._requests[turn]
        request.wait()
        if ticket := self._wanted.pop(turn, None):
            ticket.logits = self._logits(turn)
        if self._bound[turn] != self._input:
            request.set_input_tensor(self._inputs[self._input])
            self._bound[turn] = self._input
        request.start_async()
        self._used |= self._input == self._own
        self._next = (turn + 1) % len(self._requests)

    def sync(self) -> None:
        for request in self._requests:
            request.wait()

    def copy_out(self) -> Logits:
        return self._logits(self._next - 1)

    def enqueue_out(self) -> _Ticket:
        ticket = _Ticket((self._next - 1) % len(self._requests))
        self._wanted[ticket.turn] = ticket
        return ticket

    def collect(self, ticket: _Ticket) -> Logits:
        """Those answers. A ticket is good for once."""
        if ticket.logits is not None:
            return ticket.logits
        del self._wanted[ticket.turn]
        return self._logits(ticket.turn)

    def _logits(self, turn: int) -> Logits:
        import numpy as np

        request = self._requests[turn]
        request.wait()
        return np.array(request.get_output_tensor(0).data, np.float32)


def _facts(compiled: openvino.CompiledModel, device_name: str) -> Facts:
    """What OpenVINO says it compiled."""
    import openvino

    core = openvino.Core()
    types: Counter[str] = Counter()
    for operation in compiled.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        if "runtimePrecision" in info:
            types[str(info["runtimePrecision"].value)] += 1
    return {
        "openvino": openvino.__version__,
        "device": core.get_property(device_name, "FULL_DEVICE_NAME"),
        "execution_devices": list(compiled.get_property("EXECUTION_DEVICES")),
        "precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
        "layers_by_type": dict(types),
        "streams": int(compiled.get_property("NUM_STREAMS")),
        "hint": str(compiled.get_property("PERFORMANCE_HINT")).rpartition(".")[2].lower(),
    } | (
        {"threads": compiled.get_property("INFERENCE_NUM_THREADS")} if device_name == "CPU" else {}
    )


def _integer(compiled: openvino.CompiledModel) -> Facts:
    """Types that products are computed in. Raises CellFailed("fallback") when none is an integer's.

    An int8 layer takes u8 or i8, and says so.
    """
    products: Counter[str] = Counter()
    for operation in compiled.get_runtime_model().get_ops():
        info = {name: str(value.value) for name, value in operation.get_rt_info().items()}
        if info.get("layerType") in ("Convolution", "FullyConnected", "MatMul"):
            products[f"{info['layerType']} {info.get('runtimePrecision')}"] += 1
    if not any(name.endswith(("u8", "i8")) for name in products):
        raise CellFailed(
            "fallback", f"none of the network's products is computed in integers: {dict(products)}"
        )
    return {"products_by_type": dict(products), "int8_instructions": quantization.instructions()}
