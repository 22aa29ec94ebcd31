"""ONNX Runtime: the CUDA provider on a GPU, the CPU provider on a CPU, others by option.

Asked for a provider that cannot load, ONNX Runtime answers with a CPU session and no exception. So
one provider is listed, every fallback is switched off, and a session is handed out only after the
provider and the assignment of every node have been read back.

The TensorRT provider builds its engine when a session is opened: `prepare` has it do so in a cache
entry, where the sessions that are measured find it.

A Q/DQ network is one in floating point until ONNX Runtime fuses its nodes into integer operators;
where it does not, it computes in fp32, more slowly than the network that was quantised. So an int8
session is handed out only once the graph that it runs has shown that it computes in integers.
"""

from __future__ import annotations

import ctypes
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench import plugins
from gpubench.backends import _streams, _torch
from gpubench.backends._ort_session import CpuSession, CudaSession
from gpubench.backends.base import Backend, Device
from gpubench.cache import copy_entry
from gpubench.errors import CellFailed, Unavailable
from gpubench.machine.gpu import visible_gpus
from gpubench.suite.types import Cell, Option, When
from gpubench.workload.models import quantization

if TYPE_CHECKING:
    import onnxruntime

    from gpubench.backends.base import Facts, Session
    from gpubench.cache import Cache
    from gpubench.workload.models.base import Model

CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_PROVIDERS = {
    ("auto", "cpu"): "CPUExecutionProvider",
    ("auto", "cuda"): CUDA,
    ("tensorrt", "cuda"): _TENSORRT,
    ("openvino", "cpu"): "OpenVINOExecutionProvider",
}
"""(option ``provider``, device) -> name."""
_OWN_ON_CPU: When = {"device": ("cpu",), "provider": ("auto",)}
_OWN_ON_CUDA: When = {"device": ("cuda",), "provider": ("auto",)}
REMEDIES = {
    CUDA: "pip uninstall onnxruntime, then pip install 'gpubench[onnxruntime-gpu]'",
    _TENSORRT: "pip install 'gpubench[onnxruntime-gpu]', and TensorRT 10 from NVIDIA's index",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino in place of other onnxruntimes",
}
_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_CUDA_ONLY = ("cuda_graph", "prefer_nhwc", "cudnn_conv_algo_search", "streams")
_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
"""What the TensorRT provider is linked against; of TensorRT 10, whatever else is installed."""
_OF_THIS_PROCESS = ("user_compute_stream", "trt_engine_cache_path")
_INTEGER = (
    *("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm"),
    *("MatMulIntegerToFloat", "QAttention"),
)
"""Operators that multiply integers."""
_FLOATING = ("Conv", "FusedConv", "Gemm", "MatMul", "FusedGemm", "FusedMatMul")
_ONNX = "onnx.json"
"""Names the ONNX file, in a cache entry with the engine that the TensorRT provider made of it."""


class OnnxRuntime(Backend):
    """Inference sessions with inputs and outputs bound once."""

    name = "onnxruntime"
    summary = "ONNX Runtime; CUDA and CPU (TensorRT, OpenVINO by option); fp32, tf32, fp16, int8"
    options: tuple[Option, ...] = (
        Option.choice(
            "provider",
            "execution provider; auto: CUDA or CPU, as the device says",
            ("auto", "tensorrt", "openvino"),
        ),
        # not searched: each level does all of the one below
        Option.choice("graph_optimization", "graph optimisation level", tuple(reversed(_LEVELS))),
        Option.choice(
            "execution_mode",
            "parallel: independent branches run at the same time",
            ("sequential", "parallel"),
            search=("sequential", "parallel"),
            when=_OWN_ON_CPU,
        ),
        Option.flag(
            "spinning",
            "idle threads of the pool spin for a while instead of sleeping",
            default=True,
            when=_OWN_ON_CPU,
        ),
        Option.flag(
            "cuda_graph", "capture the network once and replay it; CUDA only", when=_OWN_ON_CUDA
        ),
        _streams.option(provider=("auto",)),
        Option.flag(
            "prefer_nhwc", "NHWC layout in convolutions; CUDA provider only", when=_OWN_ON_CUDA
        ),
        # DEFAULT takes one algorithm for every shape: it opens faster, and never runs faster
        Option.choice(
            "cudnn_conv_algo_search",
            "how cuDNN's algorithms are chosen; CUDA provider only",
            ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
            search=("EXHAUSTIVE", "HEURISTIC"),
            when=_OWN_ON_CUDA,
        ),
        *quantization.OPTIONS,
    )
    preload: tuple[str, ...] = ("onnxruntime",)
    reads_onnx = True

    def probe(self) -> Facts:
        suits = "onnxruntime-gpu" if visible_gpus() else "onnxruntime"
        found = plugins.installed(quantization.onnxruntime_package() or suits)
        for package, number in found.items():
            plugins.check(package, number, of="onnxruntime")
        return found

    def unsupported(self, cell: Cell) -> str | None:
        provider = _PROVIDERS.get((str(cell.options.get("provider", "auto")), cell.device))
        if provider is None:
            return f"provider {cell.options['provider']!r} does not run on {cell.device}"
        if cell.precision not in ("fp32", "tf32", "fp16", "bf16", "int8"):
            return f"{cell.precision}: here ONNX Runtime runs fp32, tf32, fp16 and int8"
        rests = ("tf32", "fp16", "bf16") if provider == _TENSORRT else ("fp32",)
        if cell.device == "cuda" and (reason := _streams.unsupported(cell)):
            return reason
        if reason := _int8_unsupported(cell, provider) or quantization.unsupported(cell, rests):
            return reason
        own = cell.precision == "fp16" and cell.model.endswith(".onnx")  # so it is what was asked
        if cell.device == "cpu" and cell.precision not in ("fp32", "int8") and not own:
            return (
                f"{cell.precision}: on a CPU ONNX Runtime has no such convolution; it casts to fp32"
            )
        if provider == CUDA and cell.precision == "bf16":
            return (
                "bf16: ONNX Runtime's CUDA provider lacks kernels, MaxPool's and Clip's among them"
            )
        if provider == _TENSORRT and cell.precision == "fp32":
            return "the TensorRT provider cannot switch TF32 off: say tf32"
        changed = [o for o in self.options if cell.options.get(o.name, o.default) != o.default]
        for option in changed:
            if option.name in _CUDA_ONLY and provider != CUDA:
                return f"{option.name} is an option of the CUDA provider, not of {provider}"
        return None

    def prepare(self, cell: Cell, model: Model, cache: Cache) -> Path:
        """The ONNX file, for any batch size; with the TensorRT provider an entry with its engine.

        Raises Unavailable where the provider, or what it needs, is missing.
        """
        import onnxruntime

        provider = _PROVIDERS[str(cell.options.get("provider", "auto")), cell.device]
        built = onnxruntime.get_available_providers()
        if provider not in built:
            raise Unavailable(
                f"this onnxruntime {onnxruntime.__version__} is built without {provider}; "
                f"it has {', '.join(built)}",
                REMEDIES[provider],
            )
        if cell.precision == "int8":
            file = quantization.onnx(
                cell, model, cache, "tensorrt" if provider == _TENSORRT else "cpu"
            )
        else:
            file = model.onnx("fp32" if cell.precision == "tf32" else cell.precision)
        return self._engine(cell, file, cache) if provider == _TENSORRT else file

    def _engine(self, cell: Cell, file: Path, cache: Cache) -> Path:
        """The cache entry with the TensorRT provider's engine for this cell and GPU.

        An entry for each file, since the provider tells engines apart by the names in a network
        only, not by its weights.
        """
        _load_tensorrt()
        recipe = {
            "onnx": str(file),  # an entry of the cache: its name says what is in it
            "versions": self.probe(),
            "gpu": [[g.name, g.compute_capability, g.driver] for g in visible_gpus()[:1]],
            "precision": cell.precision,
            "batch_size": cell.batch_size,
            "options": cell.options,
        }

        def make(at: Path) -> None:
            (at / _ONNX).write_text(json.dumps(str(file)))
            with self.open(cell, at, Device("cuda", 0)) as session:
                session.run()  # a file whose batch is not called "batch" is built for only now
                session.sync()
            if not any(at.glob("*.engine")):
                raise CellFailed("error", "ONNX Runtime's TensorRT provider kept no engine")

        return cache.get_or_make("onnxruntime-tensorrt", recipe, make)

    def export(self, artefact: Path, folder: Path) -> Path:
        """The ONNX file; with the TensorRT provider its engine too, which names it as beside."""
        if artefact.is_file():
            return copy_entry(artefact.parent, folder / "onnx") / artefact.name
        file = Path(json.loads((artefact / _ONNX).read_text()))
        copy_entry(file.parent, folder / "onnx")
        copied = copy_entry(artefact, folder / "engine")
        (copied / _ONNX).write_text(json.dumps(f"../onnx/{file.name}"))
        return copied

    def open(self, cell: Cell, artefact: Path, device: Device) -> Session:
        """A session on what `prepare` made. Raises CellFailed on any fallback."""
        options = cell.chosen(self.options)
        provider = _PROVIDERS[str(options["provider"]), cell.device]
        if device.kind == "cpu":
            settings = _cpu(provider, device)
            with _dumped(cell) as dump:
                session = _session(artefact, cell, device, options, provider, settings, dump)
                facts = _facts(session, provider, device) | _int8_facts(artefact, dump)
                if cell.precision == "fp16":
                    facts["fp16"] = (
                        "as in the file; in fp32 between casts where there is no such kernel"
                    )
            return CpuSession(session, cell.batch_size, facts)

        count = int(options["streams"])
        made: Session = _streams.several(
            count, lambda _: self._on_cuda(cell, artefact, device, provider)
        )
        return made

    def _on_cuda(self, cell: Cell, artefact: Path, device: Device, provider: str) -> CudaSession:
        """With a stream of its own, and the network's weights as well."""
        options = cell.chosen(self.options)
        with ExitStack() as stack:
            stream = _torch.enter_device(stack, device)  # torch also brings in cuBLAS and cuDNN
            settings = _cuda(provider, cell.precision, device, options) | {
                "user_compute_stream": str(stream.cuda_stream) if stream else "0"
            }
            file = artefact
            if provider == _TENSORRT:
                _load_tensorrt()
                file = artefact / json.loads((artefact / _ONNX).read_text())
                settings |= {
                    "trt_engine_cache_enable": "True",
                    "trt_engine_cache_path": str(artefact),
                }
            engines = _engines(artefact)
            session = _session(file, cell, device, options, provider, settings)
            facts = _facts(session, provider, device)
            if cell.precision == "int8":
                rest = quantization.rest_of(cell)  # which TensorRT then may use, as it may TF32
                facts |= quantization.facts(file, "tf32" if rest == "tf32" else f"{rest} or tf32")
            if provider == _TENSORRT:
                facts |= {"engines": engines, "engine_built_at_open": _engines(artefact) != engines}
            opened = CudaSession(session, cell.batch_size, facts, device, stream)
            opened.stack = stack.pop_all()
            return opened


def _load_tensorrt() -> None:
    """Load TensorRT 10's libraries, from the system or from its package, where nobody looks.

    Raises Unavailable when they are not there.
    """
    package = find_spec("tensorrt_libs")
    folders = (package and package.submodule_search_locations) or []
    for name in _LIBRARIES:
        for place in (name, *(str(Path(folder, name)) for folder in folders)):
            try:
                ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
                break
            except OSError as error:
                problem = error
        else:
            raise Unavailable(
                f"ONNX Runtime's TensorRT provider needs {name}: {problem}", REMEDIES[_TENSORRT]
            )


def _engines(entry: Path) -> list[str]:
    return sorted(file.name for file in entry.glob("*.engine"))


def _cpu(provider: str, device: Device) -> dict[str, str]:
    """Options of the providers that run on a CPU."""
    if provider == "CPUExecutionProvider":
        return {}
    threads = {"num_of_threads": str(device.threads)} if device.threads else {}
    return {"device_type": "CPU", "precision": "FP32"} | threads


def _cuda(provider: str, precision: str, device: Device, options: dict[str, Any]) -> dict[str, str]:
    """Options of the providers that run on CUDA."""
    common = {"device_id": str(device.index)}
    if provider == _TENSORRT:
        used = {precision, options["int8_rest"] if precision == "int8" else ""}
        return common | {  # where it knows True and False only, and the CUDA provider 1 and 0 too
            f"trt_{kind}_enable": str(kind in used) for kind in ("fp16", "bf16", "int8")
        }
    return common | {
        "use_tf32": _flag(precision == "tf32"),
        "enable_cuda_graph": _flag(options["cuda_graph"]),
        "prefer_nhwc": _flag(options["prefer_nhwc"]),
        "cudnn_conv_algo_search": str(options["cudnn_conv_algo_search"]),
    }


def _flag(value: object) -> str:
    return "1" if value else "0"


def _session(
    file: Path,
    cell: Cell,
    device: Device,
    options: dict[str, Any],
    provider: str,
    settings: dict[str, str],
    dump: Path | None = None,
) -> onnxruntime.InferenceSession:
    """A session that runs on ``provider`` alone. Raises CellFailed when it would not.

    ``dump``: where it leaves the graph that it runs.
    """
    import onnxruntime as ort

    if device.kind == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # cuRAND, which torch loads late
    config = ort.SessionOptions()
    config.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, _LEVELS[str(options["graph_optimization"])]
    )
    config.execution_mode = getattr(
        ort.ExecutionMode, f"ORT_{str(options['execution_mode']).upper()}"
    )
    config.intra_op_num_threads = device.threads  # 0: its default
    if options["execution_mode"] == "parallel":
        config.inter_op_num_threads = device.threads
    spinning = _flag(options["spinning"])
    config.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    config.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    config.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider != "CPUExecutionProvider":
        config.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    config.add_free_dimension_override_by_name("batch", cell.batch_size)
    if dump:
        config.optimized_model_filepath = str(dump)
        config.log_severity_level = 3  # it warns that the dump is for this machine only
    try:
        session = ort.InferenceSession(
            file, config, providers=[(provider, settings)], enable_fallback=0
        )
    except Exception as error:  # pybind's exceptions have no common base
        # the second: of its options, where releases up to 1.24 look for the device
        if not re.search("fallback to CPU EP|execution_provider_info", str(error)):
            raise
        raise CellFailed(
            "fallback",
            f"{provider} cannot run the whole network, or its libraries do not load (the log of "
            f"the worker says which): {error}",
        ) from error
    _verify(session, provider)
    return session


def _verify(session: onnxruntime.InferenceSession, provider: str) -> None:
    """Raise CellFailed unless ``provider`` really runs every node."""
    used = session.get_providers()
    if used[0] != provider:
        raise CellFailed("fallback", f"asked for {provider}, ONNX Runtime made {', '.join(used)}")
    elsewhere = {name: n for name, n in _assigned(session).items() if name != provider}
    if elsewhere:
        raise CellFailed("fallback", f"nodes that do not run on {provider}: {elsewhere}")


def _assigned(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """Nodes by provider."""
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    return dict(nodes)


def _facts(session: onnxruntime.InferenceSession, provider: str, device: Device) -> Facts:
    import onnxruntime

    settings = session.get_provider_options()[provider]
    return {
        "onnxruntime": onnxruntime.__version__,
        "providers": session.get_providers(),
        "provider_options": {k: v for k, v in settings.items() if k not in _OF_THIS_PROCESS},
        "nodes": _assigned(session),
        "dtype": session.get_inputs()[0].type,
        "threads": session.get_session_options().intra_op_num_threads,
        "device": str(device),
    }


# ------------------------------------------------------------------------------ int8


def _int8_unsupported(cell: Cell, provider: str) -> str | None:
    """Why an int8 cell would not compute in integers."""
    if cell.precision != "int8":
        return None
    if provider == CUDA:
        return (
            "int8: ONNX Runtime's CUDA provider has no integer convolution and would compute in "
            "fp32; use provider = 'tensorrt', or the backend tensorrt"
        )
    if provider == "OpenVINOExecutionProvider":
        return "int8: nothing tells whether this provider computes in it; use the backend openvino"
    level = cell.options.get("graph_optimization", "all")
    if provider == "CPUExecutionProvider" and level in ("basic", "disable"):
        return (
            f"int8: with graph_optimization = {level!r} ONNX Runtime fuses no integer operators "
            "and would compute in fp32; say 'all' or 'extended'"
        )
    return None


@contextmanager
def _dumped(cell: Cell) -> Iterator[Path | None]:
    """A file for the graph that an int8 session runs, until the end of the block."""
    if cell.precision != "int8":
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="gpubench-") as folder:
        yield Path(folder, "run.onnx")


def _int8_facts(file: Path, dump: Path | None) -> Facts:
    """How ``file`` was quantised, and which products the graph in ``dump`` computes in integers.

    Raises CellFailed("fallback") when there are none.
    """
    if dump is None:
        return {}
    import onnx

    graph = onnx.load(dump, load_external_data=False).graph
    types = Counter(node.op_type for node in graph.node)
    integer = {name: types[name] for name in _INTEGER if types[name]}
    floating = {name: types[name] for name in _FLOATING if types[name]}
    if not integer:
        raise CellFailed(
            "fallback",
            f"none of the network's products is computed in integers; ONNX Runtime runs {floating}",
        )
    return quantization.facts(file) | {
        "integer_operators": integer,
        "floating_operators": floating,
        "int8_instructions": quantization.instructions(),
    }
