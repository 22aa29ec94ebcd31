"""The network a workload names: torchvision's or our own, with weights, or an ONNX file."""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.errors import InputError
from gpubench.suite.types import weights_file
from gpubench.workload.models import digits_net
from gpubench.workload.models.onnx_model import OnnxModel
from gpubench.workload.models.torch_model import KEYWORDS, TorchModel

if TYPE_CHECKING:
    from gpubench.cache import Cache
    from gpubench.suite.types import Workload
    from gpubench.workload.models.base import Model

_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_ENUM = re.compile(r"[A-Z][A-Z0-9_]*")


@cache
def names() -> tuple[str, ...]:
    """`digits`, and all of torchvision's classification models, sorted.

    Torchvision's are read from its source, not imported.
    """
    spec = importlib.util.find_spec("torchvision")
    found = {digits_net.NAME}
    for root in (spec and spec.submodule_search_locations) or ():
        for file in Path(root, "models").glob("*.py"):
            found.update(_REGISTERED.findall(file.read_text(encoding="utf-8")))
    return tuple(sorted(found))


def seen(workload: Workload) -> tuple[str, int] | None:
    """`OnnxModel.look` of an ONNX file; None: a network of another kind."""
    if not workload.model.endswith(".onnx"):
        return None
    file = Path(workload.model).expanduser()
    found = file.stat() if file.is_file() else None
    return _seen(workload, found and (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=64)
def _seen(workload: Workload, version: object) -> tuple[str, int]:  # noqa: ARG001
    return _onnx(workload, None).look()


def _onnx(workload: Workload, cache: Cache | None) -> OnnxModel:
    file = Path(workload.model).expanduser()
    return OnnxModel(file, cache, workload.preprocess, workload.output)


def is_file(workload: Workload) -> bool:
    """Whether the network or its weights are a file of the user's."""
    name, weights = workload.model, workload.weights
    return name.endswith(".onnx") or (
        weights not in KEYWORDS and Path(weights_file(weights)[0]).expanduser().is_file()
    )


def resolve(workload: Workload, cache: Cache) -> Model:
    """The workload's network. Raises InputError, naming the nearest name, when there is none."""
    name, weights = workload.model, workload.weights
    if name.endswith(".onnx"):
        return _onnx(workload, cache)
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"unknown model {name!r}: {hint}`gpubench list models` shows those there are; "
            "a path ending in .onnx is taken as a file"
        )
    known = weights in KEYWORDS or is_file(workload)
    if not known and not _ENUM.fullmatch(weights):
        raise InputError(
            f"weights {weights!r}: no such file; give 'probe', 'random', the path of a state "
            "dict, or one of torchvision's names, for example 'DEFAULT'"
        )
    if name == digits_net.NAME and not known:
        raise InputError(
            f"weights {weights!r}: {name} is not torchvision's; give 'probe' (its own, trained "
            "here), 'random' or the path of a state dict"
        )
    return TorchModel(name, weights, cache, workload.preprocess)
