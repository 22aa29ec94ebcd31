"""A live module, or a callable that builds one, as its process has pickled it: by value.

`dump` writes it in the process that holds it, which is the only one of the user's that may know
its code; only workers load it, and a report never does.
"""

from __future__ import annotations

import copyreg
import hashlib
import inspect
import io
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from gpubench import cache, plugins
from gpubench.errors import InputError
from gpubench.workload.models import builder
from gpubench.workload.models.base import unwrapped, worded
from gpubench.workload.models.sources.code import Code
from gpubench.workload.models.torch_model import Published, TorchModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpubench.suite.types import Workload

ENDING = ".cloudpickle"
_PICKLING = Lock()
"""What is pickled by value is a setting of the whole process."""
_DRAWN = re.compile("[0-9a-f]{32}")
_INSTALLED = ("site-packages", "dist-packages")


class Pickled(Code):
    name = "cloudpickle"
    summary = "FILE.cloudpickle: a live module, or what builds one, as gpubench.run() has kept it"

    def probe(self) -> dict[str, str]:
        return plugins.installed("torch", "cloudpickle")

    def maker(self, model: str) -> tuple[Callable[..., Any], str]:
        import torch

        try:
            found = torch.load(model, map_location="cpu", weights_only=False)
        except Exception as error:  # it runs own code
            raise InputError(
                f"model {model!r} cannot be loaded by a fresh process: {worded(error)}; what it "
                "imports must be importable there, too"
            ) from error
        if isinstance(found, torch.nn.Module):
            return lambda: found, type(found).__name__
        return found, getattr(found, "__name__", type(found).__name__)

    def published(self, workload: Workload, arguments: dict[str, Any]) -> Published:
        module = builder.build(workload.model, 0, arguments)
        return Published(module, self.spec(workload, module))

    def files(self, model: str) -> dict[str, str]:
        return {model: cache.digest(Path(model))}

    def model(self, workload: Workload, cache: cache.Cache) -> TorchModel:
        """By its contents, so that what was made of it serves the next run, which lies elsewhere.

        Raises InputError for a file that cannot be read.
        """
        file = Path(workload.model)

        def copy(at: Path) -> None:
            shutil.copyfile(file, at / file.name)

        recipe = {"sha256": self.files(str(file))[str(file)], "name": file.name}
        kept = cache.get_or_make("live", recipe, copy)
        return TorchModel(self, replace(workload, model=str(kept / file.name)), cache)


def is_live(value: object) -> bool:
    """Whether ``value`` is a module of torch, or may build one; imports nothing."""
    torch = sys.modules.get("torch")
    return bool(torch and isinstance(value, torch.nn.Module)) or callable(value)


def name_of(live: object) -> str:
    """In one word: 'ResNet', 'build'; of a `functools.partial` that of its function."""
    plain = unwrapped(live)
    while isinstance(plain, partial):
        plain = plain.func
    return str(getattr(plain, "__name__", "") or type(plain).__name__).strip("<>")


def dump(live: object, directory: Path) -> Path:
    """``live``, a module of torch or a callable that returns one, in a file of ``directory``.

    Tensors are copied to the CPU; classes and functions that are not of an installed package
    travel with it. Nothing of ``live`` is called or changed. The file is named by its contents.
    Raises InputError that names the attribute that cannot travel.
    """
    import torch

    plain, buffer = unwrapped(live), io.BytesIO()
    if isinstance(plain, torch.jit.ScriptModule):
        raise InputError(f"{name_of(live)} is TorchScript; give the module it was made of")
    if type(plain).__name__ == "ExportedProgram":
        raise InputError(
            "an ExportedProgram is measured as a file: torch.export.save(it, 'it.pt2'), and give "
            "that, or its module()"
        )
    if isinstance(plain, torch.nn.Module):
        for name, value in chain(plain.named_parameters(), plain.named_buffers()):
            if value.is_meta:
                raise InputError(
                    f"{name_of(live)}: {name} has no values, as it is on the device meta; load its "
                    "weights, or give a callable that does"
                )
    with _PICKLING, _by_value():
        try:
            torch.save(plain, buffer, pickle_module=_alike())
        except Exception as error:  # whatever own code raises
            where = _culprit(plain)
            raise InputError(
                f"{name_of(live)} cannot travel to the processes that measure it: "
                f"{where and f'{where}: '}{worded(error)}; give a callable that builds it without "
                "that, or remove it before"
            ) from error
    data = buffer.getbuffer()
    file = directory / f"{name_of(live)}-{hashlib.sha256(data).hexdigest()[:12]}{ENDING}"
    if not file.exists():
        part = file.with_suffix(".part")
        part.write_bytes(data)
        part.replace(file)
    return file


@contextmanager
def _by_value() -> Iterator[None]:
    """Within it, modules that are not installed travel with what is of them, as ``__main__``'s."""
    import cloudpickle

    named = set(cloudpickle.list_registry_pickle_by_value())
    library = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib")}
    own = [module for name, module in [*sys.modules.items()]
           if name not in named and _is_own(name, module, library)]  # fmt: skip
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            with suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)


def _alike() -> Any:
    """`cloudpickle`, less the number that it draws for each class: a cell of a notebook that is run
    again gives the same bytes. And parametrised modules (weight norm, LoRA) travel, which their
    class refuses."""
    import cloudpickle
    from torch import nn
    from torch.nn.utils import parametrize

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
                return copyreg.__newobj__, (type(obj),), vars(obj)  # type: ignore[attr-defined]
            found = super().reducer_override(obj)
            if not isinstance(obj, type) or not isinstance(found, tuple):
                return found
            make, given, *more = found
            plain = (None if isinstance(a, str) and _DRAWN.fullmatch(a) else a for a in given)
            return (make, tuple(plain), *more)

    return SimpleNamespace(__name__="cloudpickle", Pickler=Pickler)


def _is_own(name: str, module: object, library: set[str]) -> bool:
    """Of the user, and of neither an installed package nor ``library``, the language's folders."""
    if name in ("__main__", "__mp_main__") or name.partition(".")[0] == __name__.partition(".")[0]:
        return False
    file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    if not file or not file.endswith(".py") or getattr(module, "__name__", "") != name:
        return False
    folders = Path(file).parts
    return not {*folders} & {*_INSTALLED} and not any(file.startswith(f"{at}/") for at in library)


def _culprit(live: Any) -> str:
    """'layer1.0: attribute sock, a socket': the first part of ``live`` that does not pickle.

    To be called within `_by_value`, which takes too long for every part.
    """
    import torch

    if isinstance(live, torch.nn.Module):
        for name, part in live.named_modules():
            for key, value in vars(part).items():
                if key != "_modules" and not _travels(value):
                    at = f"{type(part).__name__} {name}".strip()
                    return f"{at}: attribute {key}, {_kind(value)}"
    with suppress(TypeError):  # no function
        seen = inspect.getclosurevars(live)
        for key, value in [*seen.nonlocals.items(), *seen.globals.items()]:
            if not _travels(value):
                return f"its variable {key}, {_kind(value)}"
    return ""


def _kind(value: object) -> str:
    """A hook is shown as what it is: the keys of the dict that holds it are numbers."""
    if isinstance(value, dict):
        return next((_kind(each) for each in value.values() if not _travels(each)), "a dict")
    name = getattr(value, "__qualname__", "")
    return f"{name} ({type(value).__name__})" if name else f"a {type(value).__name__}"


def _travels(value: object) -> bool:
    import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001  # whatever own code raises
        return False
    return True
