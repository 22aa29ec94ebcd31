"""NVIDIA TensorRT, both flavours: `tensorrt` (10.12 or newer) and `tensorrt_rtx`."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from gpubench import plugins
from gpubench.backends import _streams
from gpubench.backends import _trt_build as trt_build
from gpubench.backends._trt_build import RTX, UPGRADE, BuildSettings
from gpubench.backends.base import Backend, Device
from gpubench.cache import content
from gpubench.errors import CellFailed, Unavailable
from gpubench.machine import gpu
from gpubench.suite.types import Cell, Option
from gpubench.workload.models import quantization

if TYPE_CHECKING:
    from gpubench.backends.base import Facts, Session
    from gpubench.cache import Cache
    from gpubench.workload.models.base import Model

FLAVOURS = ("tensorrt", RTX)
"""In the order of preference."""
PLAN, ABOUT, KERNELS = "engine.plan", "engine.json", "kernels.bin"

_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt_cu13_bindings"),
    RTX: (RTX, "tensorrt_rtx_cu13", "tensorrt_rtx_cu12"),
}
_LIBRARIES = {"tensorrt": "nvinfer", RTX: "tensorrt_rtx"}
_INSTALL = (
    "RTX and GeForce GPUs: pip install 'gpubench[tensorrt-rtx]'; any GPU: pip install "
    "'gpubench[tensorrt]' with NVIDIA's own package index as an extra index (docs, Installing)"
)


class TensorRT(Backend):
    """Strongly typed engines, one for each batch size, GPU and precision; kept in the cache."""

    name = "tensorrt"
    summary = "NVIDIA TensorRT 10.12+ and TensorRT for RTX; CUDA; fp32, tf32, fp16, bf16, int8"
    options: tuple[Option, ...] = (
        Option.choice(
            "flavour",
            "which library; auto prefers tensorrt where both are installed",
            ("auto", *FLAVOURS),
        ),
        Option.flag("cuda_graph", "capture the engine once and replay it"),
        _streams.option(),
        trt_build.OPTIMIZATION_LEVEL,
        # not searched, nor is workspace_mib: they steady the builder's choice, or cramp it
        Option.whole(
            "avg_timing_iterations",
            "runs averaged for each kernel that the builder times",
            8,
            minimum=1,
        ),
        Option.whole(
            "workspace_mib", "scratch memory that kernels may ask for; 0: all of the GPU's", 0
        ),
        # not searched: what there is to choose, a library says only when it is loaded, and it is
        # hundreds of its compiler's own knobs: `tune --option` tries those that are named
        Option(
            name="build_route",
            kind="str",
            default="",
            help="TensorRT 11.1 and later: what its compiler is told, '-name=value ...'",
        ),
        *quantization.OPTIONS,
    )
    preload = ("torch",)
    reads_onnx = True

    def probe(self) -> Facts:
        """Versions and GPU, from package metadata and the driver alone."""
        found, problems = {}, []
        for flavour in FLAVOURS:
            try:
                found[flavour] = _installed(flavour)
            except Unavailable as problem:
                problems.append(problem)
        if not found:  # what is there but unusable tells more than what is not there
            raise max(problems, key=lambda problem: problem.remedy != _INSTALL)
        device = gpu.first()
        return {"flavours": found, "gpu": device.name, "driver": device.driver}

    def unsupported(self, cell: Cell) -> str | None:
        if reason := trt_build.unsupported(cell) or _streams.unsupported(cell):
            return reason
        return quantization.unsupported(cell, ("fp32", "tf32", "fp16", "bf16"))

    def prepare(self, cell: Cell, model: Model, cache: Cache) -> Path:
        """The engine for this cell and the first visible GPU; built when the cache has none.

        Raises Unavailable for a flavour that this machine cannot use, CellFailed when TensorRT
        refuses the network.
        """
        device = gpu.first()
        flavour = _choose(str(cell.chosen(self.options)["flavour"]))
        trt = trt_build.load_flavour(flavour)
        if flavour == RTX:
            _check_rtx(trt, device)
        if cell.options.get("build_route"):
            _check_routes(trt, flavour)
        int8 = cell.precision == "int8"
        onnx = (
            quantization.onnx(cell, model, cache, "tensorrt", quantization.rest_of(cell))
            if int8
            else model.onnx(cell.precision)
        )
        settings = _settings(cell, flavour)
        target = {
            "flavour": flavour,
            "version": trt.__version__,
            "gpu": device.name,
            "compute_capability": device.compute_capability,
            "driver": device.driver,
        }
        network = content(onnx.parent)  # of its entry in the cache, weights and all
        recipe = target | {"format": 3, "onnx": network, "settings": to_builtins(settings)}

        def make(directory: Path) -> None:
            timings = cache.stored("timing", target)  # of kernels: the last build's
            built = trt_build.build(trt, flavour, onnx, settings, timings)
            about = recipe | {"sha256": _sha256(built.plan), "builder_flags": built.flags}
            if int8:
                about |= quantization.facts(onnx, "tf32" * settings.tf32)
            if flavour == RTX:
                kernels = self._compiled(trt, built.plan, settings, Device("cuda", device.index))
                (directory / KERNELS).write_bytes(kernels)
                about["kernels"] = _sha256(kernels)
            (directory / PLAN).write_bytes(built.plan)
            (directory / ABOUT).write_text(json.dumps(about, indent=1))
            if built.timing_cache:
                cache.store("timing", target, lambda _: built.timing_cache)

        return cache.get_or_make("engine", recipe, make) / PLAN

    def _compiled(self, trt: Any, plan: bytes, settings: BuildSettings, device: Device) -> bytes:
        """What TensorRT for RTX compiles when it first runs: a deployment has it from then on."""
        from gpubench.backends._trt_session import TrtSession

        size, own = settings.batch_size, settings.user_memory
        with TrtSession(trt, RTX, plan, size, device, False, user_memory=own) as session:
            session.run()
            session.sync()
            return session.compiled_rtx()

    def open(self, cell: Cell, artefact: Path, device: Device) -> Session:
        """Load an engine that ``prepare`` left in the cache, on the same kind of GPU."""
        from gpubench.backends._trt_session import TrtSession

        plan, about = _read_plan(artefact)
        _check_target(about, device.index)
        trt = trt_build.load_flavour(about["flavour"])
        if trt.__version__ != about["version"]:
            raise CellFailed(
                "error", f"engine of {about['flavour']} {about['version']}, not {trt.__version__}"
            )
        graph = bool(cell.options.get("cuda_graph"))
        own, kernels = about["settings"].get("user_memory", False), _kernels(artefact, about)

        def opened(shared: TrtSession | None) -> TrtSession:
            return TrtSession(trt, about["flavour"], plan, cell.batch_size, device, graph,
                              user_memory=own, kernels=kernels, shared=shared)  # fmt: skip

        session = _streams.several(int(cell.chosen(self.options)["streams"]), opened)
        session.facts = {
            "precision": cell.precision,
            "engine_bytes": len(plan),
            **{name: about[name] for name in _SHOWN if name in about},
            **session.facts,
        }
        return session  # type: ignore[no-any-return]


_SHOWN = (
    *("flavour", "version", "gpu", "sha256", "onnx", "settings", "builder_flags"),
    "quantised",
)


def _settings(cell: Cell, flavour: str) -> BuildSettings:
    options = cell.chosen(TensorRT.options)
    return BuildSettings(
        batch_size=cell.batch_size,
        tf32="tf32" in (cell.precision, options["int8_rest"]),
        optimization_level=int(options["optimization_level"]),
        avg_timing_iterations=int(options["avg_timing_iterations"]),
        workspace_mib=int(options["workspace_mib"]),
        build_route=str(options["build_route"]),
        user_memory=flavour == RTX and bool(options["cuda_graph"]),
    )


def _installed(flavour: str) -> str:
    """The version of an installed, complete and recent flavour; raises Unavailable."""
    if find_spec(flavour) is None and find_spec(f"{flavour}_bindings") is None:
        raise Unavailable(f"neither {' nor '.join(FLAVOURS)} is installed", _INSTALL)
    if find_spec(flavour) is None or not _has_libraries(flavour):
        raise Unavailable(f"{flavour} is installed without its native libraries", UPGRADE[flavour])
    for name in _DISTRIBUTIONS[flavour]:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        plugins.check(flavour, found, UPGRADE[flavour])
        return found
    return "unknown"  # not from a package; checked when it is loaded


def _has_libraries(flavour: str) -> bool:
    """Whether the native libraries are there, from a package or from the system."""
    if find_spec(f"{flavour}_libs") is not None:
        return True
    name = _LIBRARIES[flavour]
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    if any(any(Path(folder).glob(f"lib{name}.so*")) for folder in folders if folder):
        return True
    from ctypes.util import find_library

    return find_library(name) is not None


def _check_rtx(trt: Any, device: gpu.Gpu) -> None:
    """By what the library itself names: it has no kernels for most GPUs of data centres."""
    if "SM" + device.compute_capability.replace(".", "") not in trt.ComputeCapability.__members__:
        raise Unavailable(
            f"TensorRT for RTX {trt.__version__} has no kernels for {device.name} (compute "
            f"capability {device.compute_capability})",
            UPGRADE["tensorrt"],
        )


def _check_routes(trt: Any, flavour: str) -> None:
    found = tuple(map(int, trt.__version__.split(".")[:2]))
    if flavour == RTX or found < (11, 1):
        here = f"{flavour} {trt.__version__}"
        raise Unavailable(f"build_route is of TensorRT 11.1 and later, not of {here}",
                          UPGRADE["tensorrt"])  # fmt: skip


def _choose(wanted: str) -> str:
    """The flavour to use; raises Unavailable when what is wanted cannot be used here."""
    if wanted == "auto":
        with suppress(Unavailable):
            return _choose("tensorrt")
        wanted = RTX
    _installed(wanted)
    return wanted


def _read_plan(artefact: Path) -> tuple[bytes, dict[str, Any]]:
    """A plan and what is known of it. Plans are executable code: only our own, unchanged, run."""
    for path in (artefact, artefact.parent):
        info = path.lstat()
        if info.st_uid != os.getuid() or (path != artefact and info.st_mode & _OTHERS):
            raise CellFailed(
                "error",
                f"{path} is not private ({stat.filemode(info.st_mode)}), and engines are "
                "executable code: clear the cache, choose another --cache-dir, or copy a "
                "deployment as the user that loads it",
            )
    plan = artefact.read_bytes()
    about: dict[str, Any] = json.loads((artefact.parent / ABOUT).read_text())
    if _sha256(plan) != about["sha256"]:
        raise CellFailed("error", f"{artefact} is not the engine that was written there")
    return plan, about


def _kernels(artefact: Path, about: dict[str, Any]) -> bytes:
    """Those of TensorRT for RTX beside a plan; likewise."""
    if "kernels" not in about:
        return b""
    kernels = (artefact.parent / KERNELS).read_bytes()
    if _sha256(kernels) != about["kernels"]:
        raise CellFailed("error", f"{artefact.parent / KERNELS} is not what was written there")
    return kernels


_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def _check_target(about: dict[str, Any], index: int) -> None:
    """An engine for another GPU fails to load at best, and is slow at worst."""
    here = {one.index: one for one in gpu.visible_gpus()}.get(index)
    if here is None:
        raise Unavailable(f"CUDA device {index} is not visible", gpu.NO_GPU)
    made = (about["gpu"], about["compute_capability"])
    if made != (here.name, here.compute_capability):
        raise CellFailed("error", f"the engine is for {made[0]}, but device {index} is {here.name}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
