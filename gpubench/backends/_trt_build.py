"""Building TensorRT engines: from an ONNX file to the bytes of a plan.

Both flavours go through here. Networks are strongly typed, so the types in the ONNX file decide the
precision and one file serves TensorRT 10, 11 and TensorRT for RTX. Nothing here needs a GPU with
``tensorrt_rtx``; ``tensorrt`` times kernels on the current device.

Functions whose name ends in ``_rtx`` use what only that flavour has, ``_trt`` what only the other
does, ``_trt11`` what that has since 11.1; tests/backends/test_tensorrt_contract.py holds every name
against the real bindings.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from msgspec import Struct

from gpubench import plugins
from gpubench.errors import CellFailed, Unavailable
from gpubench.suite.types import Cell, Option

RTX = "tensorrt_rtx"
UPGRADE = {
    "tensorrt": "pip install -U 'gpubench[tensorrt]' with NVIDIA's own package index as an extra "
    "index (docs, Installing)",
    RTX: "pip install -U 'gpubench[tensorrt-rtx]'",
}


# 5 tries what 4 does, and ready-made kernels too; below 3, engines are slower
OPTIMIZATION_LEVEL = Option.whole(
    "optimization_level",
    "how long the builder searches for fast kernels",
    3,
    maximum=5,
    search=(3, 5),
)


def unsupported(cell: Cell) -> str | None:
    """Why neither TensorRT itself nor Torch-TensorRT has such a cell."""
    if cell.device != "cuda":
        return "TensorRT runs on NVIDIA GPUs only"
    if cell.precision == "amp":
        return "amp is a mode of PyTorch; TensorRT takes its types from the network: use fp16"
    return None


class BuildSettings(Struct, frozen=True, kw_only=True):
    """What decides about an engine besides its network; part of the cache's key, by name."""

    batch_size: int
    tf32: bool = False
    optimization_level: int = 3
    avg_timing_iterations: int = 8
    """The library's own default is 1; 8 is that of NVIDIA's trtexec, and less fickle."""
    workspace_mib: int = 0
    """0: the library's default, all of the device's memory."""
    build_route: str = ""
    """Of TensorRT's compiler, '-name=value ...'; '': as it chooses itself."""
    current_gpu: bool = True
    """TensorRT for RTX: build for the GPU that is present; False: for all it supports."""
    user_memory: bool = False
    """TensorRT for RTX: an engine that allocates nothing itself, as capture needs it."""


class Built(Struct, frozen=True):
    """An engine and how it came about."""

    plan: bytes
    timing_cache: bytes
    flags: list[str]
    """Names of the builder flags that were set."""


def load_flavour(flavour: str) -> Any:
    """Import a flavour's module. Raises Unavailable when it cannot be loaded or is too old."""
    try:
        trt = import_module(flavour)
    except (ImportError, OSError) as error:
        raise Unavailable(f"{flavour} cannot be loaded: {error}", UPGRADE[flavour]) from error
    plugins.check(flavour, trt.__version__, UPGRADE[flavour])
    return trt


def make_log(trt: Any) -> Any:
    """A TensorRT logger that keeps the errors for our messages and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message.strip())

    return Log()


def failed(what: str, errors: list[str]) -> CellFailed:
    """What TensorRT could not do, in its own words."""
    words = "; ".join(errors) or "TensorRT gave no reason"
    return CellFailed("error", f"{what}: {words}"[:2000])


def build(
    trt: Any, flavour: str, onnx: Path, settings: BuildSettings, timing_cache: bytes = b""
) -> Built:
    """Parse ``onnx`` (one input, whose first dimension alone may be dynamic) and build a plan.

    Raises CellFailed with the parser's or the builder's own words.
    """
    log = make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        said = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        # The log's lines name operator and node too, but are there only where the log is used.
        more = [text for text in said if not any(text in line for line in log.errors)]
        raise failed(f"{flavour} cannot parse {onnx.name}", log.errors + more)
    config = builder.create_builder_config()
    if settings.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = settings.optimization_level
    config.avg_timing_iterations = settings.avg_timing_iterations
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    _add_profile(builder, network, config, settings.batch_size, log)
    if flavour == RTX:
        _choose_gpu_rtx(trt, config, settings, log)
    else:
        if settings.build_route:
            _choose_route_trt11(config, settings.build_route, log)
        timings = _attach_timing_cache_trt(config, timing_cache, log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise failed(f"{flavour} cannot build an engine from {onnx.name}", log.errors)
    flags = ["TF32"] if config.get_flag(trt.BuilderFlag.TF32) else []
    flags += ["REQUIRE_USER_ALLOCATION"] * (flavour == RTX and settings.user_memory)
    return Built(bytes(plan), b"" if flavour == RTX else _timings_trt(timings), flags)


def _add_profile(builder: Any, network: Any, config: Any, batch: int, log: Any) -> None:
    """One profile with minimum = optimum = maximum: the measured batch."""
    if network.num_inputs != 1:
        raise CellFailed("error", f"the network has {network.num_inputs} inputs, expected 1")
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)
    if len(shape) < 2 or any(n < 0 for n in shape[1:]) or shape[0] not in (-1, batch):
        raise CellFailed(
            "error",
            f"input {tensor.name!r} has shape {shape}: only its first dimension may be dynamic, "
            f"and a fixed one must be the batch size, {batch}",
        )
    if shape[0] == batch:
        return
    profile = builder.create_optimization_profile()
    fixed = (batch, *shape[1:])
    profile.set_shape(tensor.name, fixed, fixed, fixed)
    if config.add_optimization_profile(profile) < 0:
        raise failed(f"the optimisation profile {fixed} of {tensor.name!r} was refused", log.errors)


def _attach_timing_cache_trt(config: Any, stored: bytes, log: Any) -> Any:
    """Attach ``stored`` timings, or none when they are of another device or version."""
    for content in (stored, b""):
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, False):
            return timings
    raise failed("an empty timing cache was refused", log.errors)


def _choose_route_trt11(config: Any, route: str, log: Any) -> None:
    """Raises CellFailed where this library has no such choice, naming those that it has."""
    known = config.all_build_routes
    try:
        config.build_route = route
    except (RuntimeError, ValueError) as error:
        log.errors.append(str(error))
    if config.build_route != route:
        raise failed(f"build_route = {route!r} is refused", [*log.errors, f"known: {known}"[:1000]])


def _timings_trt(timings: Any) -> bytes:
    content = timings.serialize()
    return b"" if content is None else bytes(content)


def _choose_gpu_rtx(trt: Any, config: Any, settings: BuildSettings, log: Any) -> None:
    """Its default leaves out Turing and is not specialised to the GPU that is present."""
    if settings.user_memory:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if not settings.current_gpu:
        return
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(trt.ComputeCapability.CURRENT, 0):
        raise failed("TensorRT for RTX cannot target this GPU", log.errors)
