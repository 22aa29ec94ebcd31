"""State dicts in whatever file a training script has left, read without running anything of it.

Only tensors, numbers, strings and plain containers are built. Of all else that a checkpoint holds
beside them (arguments, metrics, configurations) an inert object takes the place: no module that
the file names is imported, and nothing of it is called.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from msgspec import Struct

from gpubench import files
from gpubench.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    State = OrderedDict[str, Tensor]

_SAVE = "save the network's with torch.save(module.state_dict(), path)"
_DAMAGED = "damaged or cut off; copy it again"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""After the protocol's number: how what torch before 1.6 has saved begins."""
_KINDS = (
    (b"\x89HDF", f"an HDF5 file (Keras?): {_SAVE}"),
    (b"\x08", "an ONNX file, which brings network and weights: give it as the model, model = "
     "'....onnx'"),
)  # fmt: skip
"""What else files begin with that are no checkpoints, and what they are."""
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of keys that torch.compile, FSDP and checkpointing add."""
_AVERAGE = re.compile(r"ema|average|shadow|teacher|swa", re.IGNORECASE)
_DEEPEST, _MOST = 4, 100
"""Of dicts in dicts, and of those that may be a state dict."""
_PICKLES, _SHOWN = 4, 3


class Found(Struct, frozen=True):
    """A dict of tensors in a file that may be a network's state dict."""

    name: str
    """The keys that lead there, joined by dots; '': it is all that there is."""
    state: State
    """By the network's own keys, as far as it has them."""
    beside: list[str]
    """Keys of the same dict that are left out."""


class _Inert:
    """In the place of an object of a class that is never imported."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.is_module = isinstance(state, dict) and "_parameters" in state


class _Dict:
    """The same of a class that is filled like a dict."""

    def __new__(cls, *_: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        return OrderedDict()


class _List:
    """The same of a class that is filled like a list."""

    def __new__(cls, *_: object) -> list[object]:  # type: ignore[misc]
        return []


def read(file: Path) -> Any:
    """What ``torch.save`` or safetensors wrote, on the CPU. Raises InputError with the reason."""
    import torch

    try:
        with file.open("rb") as stream:
            head = stream.read(64)
        if head[8:10] == b'{"' or file.suffix == ".safetensors":
            return _safetensors(file)
        if head.startswith(_ZIP):
            names = _of_archive(file)
        elif head.startswith(_PICKLE) and head[2:].startswith(_LEGACY):
            with file.open("rb") as stream:
                names = {name for _ in range(_PICKLES) for name in _globals(stream)}
        else:
            raise _Unreadable(_kind(head))
        inert: dict[str, type] = {name: _stand_in(name) for name in names}
        while True:
            try:
                with torch.serialization.safe_globals([(make, n) for n, make in inert.items()]):
                    return torch.load(
                        file, map_location="cpu", mmap=head.startswith(_ZIP), weights_only=True
                    )
            except Exception as error:
                name, container = _contains(str(error), inert)
                if inert.get(name, container) is container:
                    raise
                inert[name] = container  # a class of the file's own that is filled like that one
    except Exception as error:  # whatever torch trips over in bytes from a stranger
        reason = str(error) if isinstance(error, _Unreadable) else _plainly(error)
        raise InputError(f"weights {str(file)!r}: {reason}") from error


class _Unreadable(Exception):
    """Why, and what to do."""


def _kind(head: bytes) -> str:
    """What a file is that is neither a zip archive nor a pickle of torch's."""
    if known := files.strange(head, *_KINDS):
        return known
    if head.startswith(_PICKLE):
        return f"a pickle that torch.save has not written; pickles are programs: {_SAVE}"
    return f"no file of torch.save's: it begins with {head[:12]!r}; {_SAVE}"


def _safetensors(file: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise _Unreadable("a safetensors file; pip install safetensors") from error
    try:
        return load_file(file)
    except Exception as error:
        raise _Unreadable(f"no whole safetensors file ({error}); copy it again") from error


def _of_archive(file: Path) -> set[str]:
    """The names in the pickle of a zip archive that torch.save has written."""
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise _Unreadable(f"a zip archive, {_DAMAGED}") from error
    with archive:
        parts = {name.partition("/")[2]: name for name in archive.namelist()}
        if "constants.pkl" in parts:
            raise _Unreadable(
                "a TorchScript archive; torch.save(torch.jit.load(path).state_dict(), "
                "'weights.pth') takes its state dict out"
            )
        if "data.pkl" not in parts:
            some = ", ".join(map(repr, archive.namelist()[:_SHOWN]))
            raise _Unreadable(f"a zip archive of something else ({some}, ...); {_SAVE}")
        with archive.open(parts["data.pkl"]) as stream:
            return _globals(stream)


def _globals(stream: IO[bytes]) -> set[str]:
    """What the next pickle names of modules, as Python 3 calls it."""
    found = set()
    try:
        for code, argument, _ in pickletools.genops(stream):
            if code.name == "PROTO" and argument != 2:
                raise _Unreadable(
                    f"saved with pickle_protocol={argument}, which torch reads only by running it; "
                    "save it with torch.save's own protocol"
                )
            if code.name == "GLOBAL":
                module, name = str(argument).split(" ", 1)
                named = (IMPORT_MAPPING.get(module, module), name)
                found.add(".".join(NAME_MAPPING.get((module, name), named)))
    except ValueError as error:
        raise _Unreadable(_DAMAGED) from error
    return found


def _stand_in(full: str) -> type[_Inert]:
    module, _, name = full.rpartition(".")
    return type(name, (_Inert,), {"__module__": module})


def _contains(error: str, inert: Mapping[str, type]) -> tuple[str, type]:
    """The class whose object was to be filled, and one that can be."""
    if short := re.search(r"'(\w+)' object does not support item assignment", error):  # torch 2.9
        left = [name for name, made in inert.items() if made is not _Dict]
        return next((name for name in left if name.rpartition(".")[2] == short[1]), ""), _Dict
    name = re.search(r"got <class '(.*)'>", error)
    return name[1] if name else "", _Dict if "SETITEM" in error else _List


def _plainly(error: Exception) -> str:
    """The reason alone, of what torch says about it."""
    words = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    blocked = re.search(r"GLOBAL (\S+) whose module \S+ is blocked", words)
    if blocked:
        return f"names {blocked[1]}, which no weights need: nothing of it was run; do not trust it"
    if isinstance(error, EOFError) or "unexpected EOF" in words:
        return _DAMAGED
    reason = re.sub(r"\x1b\[\d*m", "", words).partition("\n")[0].rstrip(". ") or repr(error)
    return f"cannot be read as a state dict ({reason}); {_SAVE}"


def candidates(loaded: object, head: str) -> list[Found]:
    """Every dict of tensors that may be the state dict of a network whose last layer is ``head``.

    ``head``: a key of the network's. In the order of the file, but weights that are an average of
    others, by their names, come last.
    """
    found = islice(_candidates(loaded, head, (), set()), _MOST)
    return sorted(found, key=lambda one: bool(_AVERAGE.search(one.name)))


def _candidates(
    loaded: object, head: str, path: tuple[str, ...], seen: set[int]
) -> Iterator[Found]:
    import torch

    if not isinstance(loaded, dict) or id(loaded) in seen:
        return
    seen.add(id(loaded))
    tensors: State = OrderedDict(
        (_WRAPPERS.sub("", key), value)
        for key, value in loaded.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    )
    found = [key[: -len(head)] for key in tensors if f".{key}".endswith(f".{head}")]
    prefixes = tuple(found) or ("",) * bool(tensors)
    for prefix in prefixes:
        inner = [prefix.rstrip(".")] if prefix and len(prefixes) > 1 else []
        yield Found(
            ".".join([*path, *inner]),
            _below(prefix, tensors, getattr(loaded, "_metadata", None)),
            [key for key, t in tensors.items() if t.dim() and not key.startswith(prefixes)],
        )
    if len(path) < _DEEPEST:
        for key, value in loaded.items():
            yield from _candidates(value, head, (*path, str(key)), seen)


def _below(prefix: str, tensors: State, versions: object) -> State:
    """The tensors below ``prefix``, with the versions of modules, which MNASNet needs."""
    plain = OrderedDict((k[len(prefix) :], t) for k, t in tensors.items() if k.startswith(prefix))
    plain._metadata = {  # type: ignore[attr-defined]
        _WRAPPERS.sub("", f"{key}.").removeprefix(prefix)[:-1]: value
        for key, value in (versions.items() if isinstance(versions, dict) else ())
        if isinstance(key, str) and isinstance(value, dict)
    }
    return plain


def described(loaded: object) -> str:
    """What a file without a state dict holds instead, for an error: 'holds a list'."""
    if isinstance(loaded, dict):
        held = [f"{str(key)[:40]!r}: {_name(value)}" for key, value in loaded.items()]
        more = ", ..." if len(held) > _SHOWN else ""
        what = f"a dict of {{{', '.join(held[:_SHOWN])}{more}}}"
    else:
        what = _name(loaded)
    return f"holds {what}, no dict of tensors; {_SAVE}"


def _name(value: object) -> str:
    module = getattr(value, "is_module", False)
    kind = type(value)
    name = f"{kind.__module__}.{kind.__name__}".removeprefix("builtins.")
    return f"a whole module ({name})" if module else name
