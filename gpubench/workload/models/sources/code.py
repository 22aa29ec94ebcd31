"""The user's own code: a callable that returns a network.

It runs in workers only, and whatever it does there ends with them.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import sys
import traceback
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gpubench import cache
from gpubench.errors import InputError
from gpubench.suite.schema import show
from gpubench.suite.types import model_path
from gpubench.workload.data import preprocess
from gpubench.workload.models import builder
from gpubench.workload.models.base import ON_CPU, of_gpu, unwrapped, worded
from gpubench.workload.models.torch_model import Published, TorchSource, default_only

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from gpubench.suite.types import Workload
    from gpubench.workload.data.preprocess import Spec

SIDE = 224
"""Pixels, where the suite does not say."""


class Code(TorchSource):
    name = "code"
    sizes = "any"
    summary = "FILE.py:CALLABLE or MODULE:CALLABLE: own code that returns an nn.Module"

    def build(self, model: str, classes: int, arguments: dict[str, Any]) -> nn.Module:  # noqa: ARG002
        """Its number of classes is its own."""
        import torch

        make, name = self.maker(model)
        if isinstance(plain := unwrapped(make), torch.nn.Module):
            make = partial(copy.deepcopy, plain)
        try:
            module = unwrapped(make(**arguments))
            if isinstance(module, torch.nn.Module):
                module.eval()
        except BaseException as error:
            given = ", ".join(f"{key}={show(value)}" for key, value in arguments.items())
            hint = ""
            if isinstance(error, TypeError) and len(traceback.extract_tb(error.__traceback__)) == 1:
                hint = "; [workload.arguments] are what it is given"
            elif of_gpu(error):
                hint = f"; {ON_CPU}"
            raise _failed(f"model {model!r}: {name}({given}) raises", error, hint) from error
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"model {model!r} is TorchScript; return the module it was made of")
        if not isinstance(module, torch.nn.Module):
            raise InputError(
                f"model {model!r}: {name} returns {type(module).__name__}, and an "
                "nn.Module is expected"
            )
        lazy = torch.nn.parameter.is_lazy
        if late := [key for key, each in module.named_parameters() if lazy(each)]:
            raise InputError(
                f"model {model!r}: {late[0]!r} has no shape before the first picture: let "
                f"{name} call the module once before it returns it"
            )
        return module

    def maker(self, model: str) -> tuple[Callable[..., Any], str]:
        """What returns the module, and its name. Raises InputError."""
        name = model.rpartition(":")[2]
        return _callable(model, name), name

    def spec(self, workload: Workload, module: nn.Module) -> Spec:  # noqa: ARG002
        said = workload.preprocess
        grey = said is not None and said.channels == "grey"
        layout = (said and said.layout) or "NCHW"
        return preprocess.assumed((SIDE, SIDE), "grey" if grey else "rgb", layout)

    def published(self, workload: Workload, arguments: dict[str, Any]) -> Published:
        """'DEFAULT': those that it returns with."""
        default_only(workload, f"as {workload.model} returns them")
        module = builder.build(workload.model, 0, arguments)
        return Published(module, self.spec(workload, module))

    def files(self, model: str) -> dict[str, str]:
        """The modules in use that lie beside it, or in its package."""
        root = _root(model)
        found = [getattr(module, "__file__", None) for module in [*sys.modules.values()]]
        inside = {Path(file) for file in found if file and file.endswith(".py")}
        return {
            str(p): cache.digest(p) for p in sorted(inside) if root in p.parents and p.is_file()
        }

    def recipe(self, workload: Workload) -> dict[str, Any]:
        """With the weights that it returns: what it reads on the way may have changed."""
        module = builder.build(workload.model, 0, dict(workload.arguments))
        return super().recipe(workload) | {"state": _digest(workload.model, module)}


def _digest(model: str, module: nn.Module) -> str:
    import torch

    found = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"model {model!r}: {key} is no tensor, as in networks that torch has quantised; "
                "give it as it was before, and precision = 'int8' to backends that quantise"
            )
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.device.type == "cpu":
            found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _callable(model: str, name: str) -> Callable[..., Any]:
    module = _module(model.rpartition(":")[0])
    found: Callable[..., Any] | None = vars(module).get(name)
    if found is None or not callable(found):
        own = [
            key
            for key, value in vars(module).items()
            if callable(value)
            and not key.startswith("_")
            and getattr(value, "__module__", "") == module.__name__
        ]
        what = f"is {type(found).__name__}, which cannot be called" if found else "is not there"
        raise InputError(
            f"model {model!r}: {name!r} {what}; callables of {module.__name__}: "
            f"{', '.join(own[:10]) or 'none'}"
        )
    return found


@lru_cache
def _module(place: str) -> ModuleType:
    """Of a file or by its name, imported once in this process. Raises InputError.

    A file of a package as part of it, from the folder that the package lies in: so its relative
    imports work.
    """
    try:
        if not place.endswith(".py"):
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(place)
        file = Path(place).expanduser().absolute()
        if packages := _packages(file):
            sys.path.insert(0, str(packages[-1].parent))
            parts = file.with_suffix("").relative_to(packages[-1].parent).parts
            found = importlib.import_module(".".join(parts))
            if Path(found.__file__ or "").resolve() != file.resolve():
                raise ImportError(f"{'.'.join(parts)!r} is {found.__file__}")
            return found
        name = file.stem if file.stem not in sys.modules else f"gpubench_model_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec  # noqa: S101
        assert spec.loader  # noqa: S101
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(file.parent))
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except BaseException as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and place.startswith(error.name or "\0"):
            hint = f"; install it, or start in the folder that it lies in (this is {Path.cwd()})"
        raise _failed(f"model {place!r} cannot be imported:", error, hint) from error
    return module


def _failed(what: str, error: BaseException, hint: str) -> InputError:
    """With the last line of the traceback that is not ours, nor the import system's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<frozen")]
    at = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    if isinstance(error, SyntaxError):
        at = f" ({error.filename}:{error.lineno})"
    return InputError(f"{what} {worded(error)}{at}{hint}")


def _packages(file: Path) -> list[Path]:
    """Folders of the package that ``file`` is of, the innermost first; []: of none."""
    return list(takewhile(lambda at: (at / "__init__.py").is_file(), file.parents))


def _root(model: str) -> Path:
    """The folder that its own modules lie in."""
    place = model_path(model)
    if place:
        file = Path(place).expanduser().absolute()
        return (_packages(file) or [file.parent])[-1]
    top = _module(model.partition(":")[0].partition(".")[0])
    file = Path(top.__file__ or "")
    return file.parent if file.name == "__init__.py" else file
