"""Programs that torch.export has saved."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench import cache, plugins
from gpubench.errors import InputError
from gpubench.workload.data import preprocess
from gpubench.workload.models.torch_model import Published, TorchSource

if TYPE_CHECKING:
    from torch import nn

    from gpubench.suite.types import Workload
    from gpubench.workload.data.preprocess import Spec

_SAVE = "torch.export.save(torch.export.export(module, (images,)), 'x.pt2') saves one"


class Exported(TorchSource):
    name = "pt2"
    summary = "FILE.pt2: a program of torch.export, with its weights"
    sizes = "fixed"

    def probe(self) -> dict[str, str]:
        return plugins.installed("torch")

    def look(self, workload: Workload) -> None:
        """Raises InputError for what is no such program, by the names of its parts."""
        file = workload.model
        try:
            with zipfile.ZipFile(Path(file).expanduser()) as archive:
                parts = [name.partition("/")[2] for name in archive.namelist()]
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"model {file!r} is no file of torch.export's: {error}") from error
        if is_package(parts):
            raise InputError(
                f"model {file!r} is a compiled package of AOTInductor, whose network none of the "
                f"other backends can be given; give the program that it was compiled from: {_SAVE}"
            )
        if "constants.pkl" in parts or not any(part.startswith("models/") for part in parts):
            kind = "TorchScript" if "constants.pkl" in parts else "no program of torch.export"
            raise InputError(f"model {file!r} is {kind}; {_SAVE}, the module being what it was of")

    def build(self, model: str, classes: int, arguments: dict[str, Any]) -> nn.Module:  # noqa: ARG002
        import torch

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of another version of torch
                program = torch.export.load(Path(model).expanduser())
        except Exception as error:  # whatever it trips over in bytes from a stranger
            raise InputError(
                f"model {model!r} cannot be read by torch {torch.__version__}: "
                f"{str(error).strip()[:300]}; export it again"
            ) from error
        module: nn.Module = program.module()
        del module.train, module.eval  # which refuse; its layers are what they were exported as
        module.images = _images(program, model)
        return module

    def spec(self, workload: Workload, module: nn.Module) -> Spec:
        _, *shape = module.images.shape
        dtype = str(module.images.dtype).removeprefix("torch.")
        depth = {1: "grey", 3: "rgb"}
        layout = "NCHW" if shape[0] in depth else "NHWC"
        channels, *size = shape if layout == "NCHW" else (shape[2], *shape[:2])
        if channels not in depth or dtype not in ("float32", "uint8"):
            raise InputError(
                f"model {workload.model!r} takes {tuple(shape)} {dtype} for a picture; expected "
                "float32 or uint8, with 1 or 3 channels"
            )
        found: Any = (tuple(size), depth[channels], layout, dtype)
        return preprocess.assumed(*found)

    def batch(self, module: nn.Module) -> int:
        first = module.images.shape[0]
        return first if isinstance(first, int) else 0

    def published(self, workload: Workload, arguments: dict[str, Any]) -> Published:  # noqa: ARG002
        from gpubench.workload.models import builder

        module = builder.build(workload.model, 0, {})
        return Published(module, self.spec(workload, module))

    def files(self, model: str) -> dict[str, str]:
        return {model: cache.digest(Path(model).expanduser())}


def is_package(parts: list[str]) -> bool:
    """Whether an archive with these parts is what AOTInductor has compiled."""
    return any(part.startswith("data/aotinductor/") for part in parts)


def _images(program: Any, model: str) -> Any:
    """The program's only input, a fake tensor. Raises InputError."""
    wanted = program.graph_signature.user_inputs
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    found = [nodes[name] for name in wanted if name in nodes]
    if len(wanted) != 1 or len(found) != 1 or getattr(found[0], "ndim", 0) != 4:
        shown = ", ".join(map(str, wanted))
        raise InputError(
            f"model {model!r} takes {shown}: expected one input with four dimensions, pictures"
        )
    if any(not isinstance(side, int) for side in found[0].shape[1:]):
        raise InputError(
            f"model {model!r} leaves the size of pictures open ({tuple(found[0].shape)}): export "
            "it with a size, and an open batch"
        )
    return found[0]
