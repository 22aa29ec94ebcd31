"""Weights that an ONNX file keeps in other files: only files beside it, and only what they hold.

A runtime opens whatever path a tensor names. So every tensor of the file is looked at, wherever it
may hide: in graphs inside nodes, attributes, functions, sparse tensors.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from gpubench.cache import MANIFEST
from gpubench.files import POINTER
from gpubench.workload.models.onnx_export import FILE

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

RESERVED = (FILE, MANIFEST)
"""Names that the copy in the cache needs itself."""
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def external(model: ModelProto, folder: Path) -> list[str]:
    """Names of the files in ``folder`` with tensors of ``model``, sorted.

    Raises ValueError, which begins as 'keeps weights in ...', for one that is not a file beside it
    (absolute, with '..', or by a link, but for those of a hub's cache), or that is too short for
    what the tensor says it holds.
    """
    names = set()
    for tensor in tensors(model):
        if tensor.data_location == tensor.EXTERNAL:
            told = {entry.key: entry.value for entry in tensor.external_data}
            if not all(isinstance(text, str) for text in told.values()):  # protobuf gives bytes
                raise ValueError(f"keeps weights in {told}, which is no UTF-8 text")
            name = told.get("location", "")
            size = _size(folder, name)
            at, length = (_number(name, key, told.get(key, "")) for key in ("offset", "length"))
            needed = _needed(tensor)
            wanted = (at or 0) + max(length or 0, needed)
            if wanted > size or (length is not None and length < needed):
                with (folder / name).open("rb") as file:
                    if file.read(len(POINTER)) == POINTER:
                        raise ValueError(
                            f"keeps weights in {name!r}, which is a Git LFS pointer, not the file "
                            "itself: run `git lfs pull`"
                        )
                raise ValueError(
                    f"keeps weights in {name!r}: {tensor.name!r} needs {needed:,} bytes, said to "
                    f"be {'all' if length is None else f'{length:,}'} from {at or 0:,} on of a "
                    f"file of {size:,}"
                )
            names.add(name)
    return sorted(names)


def tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor in a message."""
    return (part for part in messages(message) if part.DESCRIPTOR.name == "TensorProto")


def messages(message: Any) -> Iterator[Any]:
    """It and all inside it; protobuf reads no more than 33 graphs inside one another."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Iterable) else (value,):
                yield from messages(part)


def _size(folder: Path, name: str) -> int:
    """Bytes of the file ``name`` in ``folder``; raises ValueError for anything else."""
    path, place = PurePosixPath(name), folder / name
    plain = name and "\0" not in name and not path.is_absolute() and ".." not in path.parts
    with suppress(OSError, RuntimeError):  # RuntimeError: a link to itself
        if plain and str(path) not in RESERVED:
            info = place.stat()
            real = place.resolve(strict=True)
            inside = real.is_relative_to(folder.resolve()) or real.parent == _blobs(folder)
            if inside and stat.S_ISREG(info.st_mode):
                return info.st_size
    raise ValueError(f"keeps weights in {name!r}, which is not a file beside it")


def _blobs(folder: Path) -> Path | None:
    """Where a hub's cache keeps what the links of a snapshot point to, if this is in one.

    Its form is REPOSITORY/snapshots/REVISION/... -> REPOSITORY/blobs/DIGEST.
    """
    folder = folder.absolute()
    for revision in (folder, *folder.parents):
        blobs = revision.parent.parent / "blobs"
        if revision.parent.name == "snapshots" and blobs.is_dir():
            return blobs.resolve()
    return None


def _number(name: str, key: str, text: str) -> int | None:
    """As runtimes read it: decimal digits."""
    if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"keeps weights in {name!r}: {key} {text[:40]!r} is no number of bytes")
    return int(text) if text else None


def _needed(tensor: TensorProto) -> int:
    """Bytes of its values."""
    import onnx

    kind = tensor.data_type
    try:
        bits = _BITS.get(onnx.TensorProto.DataType.Name(kind))
        bits = bits or 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    except (ValueError, KeyError) as error:
        raise ValueError(f"holds {tensor.name!r}, whose type {kind} is unknown") from error
    if any(d < 0 for d in tensor.dims):
        raise ValueError(f"holds {tensor.name!r} of shape {list(tensor.dims)}")
    return -(-math.prod(int(d) for d in tensor.dims) * int(bits) // 8)
