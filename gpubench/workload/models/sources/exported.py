"""Programs that torch.export has saved, and packages that AOTInductor has made of them."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gpubench import cache
from gpubench.errors import InputError, Unsupported
from gpubench.workload.data import preprocess
from gpubench.workload.models import compiled_package
from gpubench.workload.models.registry import Look
from gpubench.workload.models.torch_model import Published, TorchModel, TorchSource

if TYPE_CHECKING:
    from torch import nn

    from gpubench.cache import Cache
    from gpubench.suite.types import Workload
    from gpubench.workload.data.preprocess import Spec

_SAVE = "torch.export.save(torch.export.export(module, (images,)), 'x.pt2') saves one"
_MOST_BYTES = 2**26
"""Of a program without its weights."""
_UINT8 = 1
"""As torch.export writes the type."""


class Exported(TorchSource):
    name = "pt2"
    summary = "FILE.pt2: a program of torch.export, or of AOTInductor, with its weights"
    sizes = "fixed"

    def look(self, workload: Workload) -> Look | None:
        """Of a compiled package, or of the one input of a program; None: that cannot be told.

        Raises InputError for what is neither, by the names of its parts.
        """
        file = workload.model
        if compiled_package.is_package(file):
            about = compiled_package.read(file)
            dtype = "uint8" if about.dtype == "uint8" else "float32"
            backend, device = compiled_package.BACKEND, about.device
            return Look(about.precision, about.batch, dtype, backend=backend, device=device)
        parts = compiled_package.parts(file)
        if "constants.pkl" in parts or not any(part.startswith("models/") for part in parts):
            kind = "TorchScript" if "constants.pkl" in parts else "no program of torch.export"
            raise InputError(f"model {file!r} is {kind}; {_SAVE}, the module being what it was of")
        return _told(file)[0]

    def build(self, model: str, classes: int, arguments: dict[str, Any]) -> nn.Module:  # noqa: ARG002
        import torch

        if compiled_package.is_package(model):
            return _compiled(model)
        answers = _told(model)[1]
        for kind in answers:
            with suppress(Exception):  # which registers its outputs, if it can be had
                if kind.startswith("transformers."):
                    import_module(kind.rpartition(".")[0])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of another version of torch
                program = torch.export.load(Path(model).expanduser())
        except Exception as error:  # whatever it trips over in bytes from a stranger
            own = f" (it answers with {', '.join(answers)})" if answers else ""
            raise InputError(
                f"model {model!r} cannot be read by torch {torch.__version__}: "
                f"{str(error).strip()[:300]}; export it again, as a module that answers with a "
                f"tensor, a tuple or a dict{own}"
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
                "float32 or uint8, with 1 or 3 channels: export module.float(), precision is an "
                "axis here"
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

    def model(self, workload: Workload, cache: Cache) -> TorchModel:
        kind = _Compiled if compiled_package.is_package(workload.model) else TorchModel
        return kind(self, workload, cache)

    def files(self, model: str) -> dict[str, str]:
        return {model: cache.digest(Path(model).expanduser())}


class _Compiled(TorchModel):
    """A package, whose answers are compared with its own: nothing else computes its network."""

    engine = "the compiled package itself"

    @property
    def notes(self) -> list[str]:
        about = compiled_package.read(self.name)
        return [
            *super().notes,
            f"compiled for {about.device} {about.target}".rstrip(),
            "its answers are compared with its own only, as nothing else runs it",
        ]

    def onnx(self, precision: str, batch: int | None = None) -> Path:  # noqa: ARG002
        raise Unsupported(f"model {self.name!r} is compiled, and no network to export")


def _told(file: str) -> tuple[Look | None, list[str]]:
    """What a program's own JSON says of its input, and the classes of what it answers with."""
    try:
        with zipfile.ZipFile(Path(file).expanduser()) as archive:
            [name] = [n for n in archive.namelist() if n.endswith("models/model.json")]
            if archive.getinfo(name).file_size > _MOST_BYTES:
                return None, []
            program = json.loads(archive.read(name))["graph_module"]
        specs = program["signature"]["input_specs"]
        own = next(spec["user_input"] for spec in specs if "user_input" in spec)
        given = program["graph"]["tensor_values"][own["arg"]["as_tensor"]["name"]]
        batch, dtype = given["sizes"][0].get("as_int", 0), given["dtype"]
        if type(batch) is not int or not 0 <= batch < _MOST_BYTES:
            return None, []
        kinds = re.findall(
            r'"type": "([^"]+)"', program["module_call_graph"][0]["signature"]["out_spec"]
        )
    except Exception:  # noqa: BLE001  # bytes from a stranger
        return None, []  # damaged, or of a version of torch that says it otherwise
    look = Look("", batch, "uint8" if dtype == _UINT8 else "float32")
    return look, [kind for kind in kinds if not kind.startswith("builtins.")]


def _compiled(model: str) -> nn.Module:
    """The package, with `images` as a program has it."""
    about, module = compiled_package.read(model), compiled_package.module(model)
    dtype = "uint8" if about.dtype == "uint8" else "float32"  # which it makes its own of
    module.images = SimpleNamespace(shape=(about.batch or "any", *about.shape), dtype=dtype)
    return module


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
