"""What backends that compile share: inductor's compiler and settings, and entries of the cache."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from gpubench.backends import _torch
from gpubench.backends.torch_eager import TorchEager
from gpubench.cache import copy_entry
from gpubench.errors import Unavailable
from gpubench.suite.types import Cell, Option

if TYPE_CHECKING:
    from gpubench.backends.base import Facts

OPTIONS = (
    # inductor gives the weights of frozen convolutions a layout of its own
    replace(TorchEager.options[0], when={"freezing": (False,)}),
    *TorchEager.options[1:],
    Option.flag(
        "freezing", "inline the weights as constants: folds batch-norm, packs weights on CPU"
    ),
)
STATE = "state.json"
"""In an entry that names another one, the network's."""


def compiler() -> Facts:
    """Where the C++ compiler is; raises Unavailable where it, or what it needs, is not."""
    named = os.environ.get("CXX", "g++")
    found = shutil.which(named)
    if found is None:
        raise Unavailable(
            f"inductor needs a C++ compiler, and there is no {named} on PATH",
            "apt-get install g++ (or set CXX to another one)",
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise Unavailable(
            "inductor compiles against Python.h, which this Python came without",
            "apt-get install python3-dev",
        )
    return {"c++": found}


def recipe(cell: Cell, state: Path) -> dict[str, Any]:
    """All that generated code depends on, for the cache.

    Raises Unavailable as `compiler`, and where torch cannot use the device.
    """
    if cell.device == "cuda":
        _torch.check_cuda()
    return {
        "state": str(state),
        "torch": version("torch"),
        "triton": version("triton") if cell.device == "cuda" else None,
        "compiler": compiler()["c++"],
        "device": [cell.device, hardware(cell.device)],
        "precision": cell.precision,
        "batch_size": cell.batch_size,
        "threads": cell.cores,
        "options": cell.options,
    }


def hardware(device: str) -> str:
    """The GPU's name, or the CPU's vector units: what generated code depends on."""
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {torch.version.cuda}"
    return str(torch.backends.cpu.get_cpu_capability())


def untried() -> AbstractContextManager[None]:
    """Until left, inductor believes a CPU's flags: else it compiles a trial of its vector units."""
    import torch._inductor.config

    patched: AbstractContextManager[None] = torch._inductor.config.patch("cpp.vec_isa_ok", True)
    return patched


def vector_units() -> str:
    """Those of this CPU that inductor uses, by its names."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with untried():
        return str(pick_vec_isa())


def enter(stack: ExitStack, work: Path, threads: int, **settings: Any) -> None:
    """Until ``stack`` closes, inductor's own cache is ``work``, and its settings are these."""
    # inductor would set the second for good
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(work), "TRITON_CACHE_DIR": str(work / "triton")}
    stack.enter_context(variables(**caches))
    import torch._inductor.config

    settings |= {
        "cpp.threads": threads or -1,  # compiled in, so it must be part of the cache key
        "compile_threads": 1,  # no pool of compilers beside a measurement
    }
    stack.enter_context(untried())
    stack.enter_context(torch._inductor.config.patch(settings))


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """These environment variables, until the end of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


@contextmanager
def cuda_headers() -> Iterator[None]:
    """Without a CUDA toolkit, those that AOTInductor compiles against from torch's own packages.

    CUDA 13's come with torch, less a part that Triton has. Raises Unavailable without these, too.
    """
    try:
        from torch.utils import cpp_extension
    except ModuleNotFoundError as error:  # setuptools, which torch does not ask for everywhere
        name = error.name or str(error)
        raise Unavailable(f"AOTInductor on CUDA needs {name}", f"pip install {name}") from error

    if cpp_extension.CUDA_HOME is not None:
        yield
        return
    home = triton = None
    with suppress(ModuleNotFoundError):  # what they would be part of
        home, triton = (find_spec(name) for name in ("nvidia.cu13", "triton.backends.nvidia"))
    if home is None or triton is None:
        raise Unavailable(
            "AOTInductor compiles against CUDA's headers, and there is no CUDA toolkit",
            "install NVIDIA's CUDA toolkit, or set CUDA_HOME to where it is",
        )
    [at], [of_triton] = (list(s.submodule_search_locations or ()) for s in (home, triton))
    with variables(CUDA_HOME=at, CUDA_INC_PATH=str(Path(of_triton, "include"))):
        cpp_extension.CUDA_HOME = at  # which was read when it was imported
        try:
            yield
        finally:
            cpp_extension.CUDA_HOME = None


def directory(stack: ExitStack, source: Path | None = None) -> Path:
    """A private directory with a copy of ``source`` (if there is one), until ``stack`` closes."""
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpubench-inductor-")))
    if source and source.is_dir():
        shutil.copytree(source, path, dirs_exist_ok=True)
    return path


def state_of(artefact: Path) -> Path:
    """The entry that ``artefact`` names."""
    return artefact / str(json.loads((artefact / STATE).read_text()))


def export(artefact: Path, folder: Path) -> Path:
    """Copy both entries, the second naming the first by where it lies to it."""
    copy_entry(state_of(artefact), folder / "state")
    copied = copy_entry(artefact, folder / "compiled")
    (copied / STATE).write_text(json.dumps("../state"))
    return copied


def first_line(error: BaseException) -> str:
    """What matters of what may be a page."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:300]
