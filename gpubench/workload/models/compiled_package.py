"""Packages that AOTInductor has compiled (``torch._inductor.aoti_compile_and_package``).

A package says nowhere what it takes, and does not look at what it is given: a batch that is too
small is read past its end. What it was compiled for is in the source that it brings along, whose
checks of inputs are off unless AOTI_RUNTIME_CHECK_INPUTS is set.
"""

from __future__ import annotations

import json
import re
import zipfile
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from msgspec import Struct

from gpubench.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

BACKEND = "aot-inductor"
"""The only one that runs them."""
_FOLDER = "data/aotinductor/"
_MODEL = f"{_FOLDER}model/"
"""Of the network that ``aoti_load_package`` loads, of those that a package may hold."""
_INPUT = re.compile(r"inputs_info_\[(\d+)\]\.name")
_CONSTANT = re.compile(r"constants_info_\[\d+\]\.dtype = .*?cached_torch_dtype_(\w+)")
_DTYPE = re.compile(r'input_handles\[0\]: unmatched dtype.*?"\((?:at::)?(\w+)\)', re.DOTALL)
_DIM, _STRIDE = (
    re.compile(rf'input_handles\[0\]: unmatched {what} value at (\d+), "\s*<< "expected: (\d+)')
    for what in ("dim", "stride")
)
_TYPES = {"kFloat": "float32", "kHalf": "float16", "kBFloat16": "bfloat16", "kByte": "uint8"}
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}
"""Of the types of weights, the coarsest first; else fp32."""


class Package(Struct, frozen=True):
    """What a package was compiled for."""

    shape: tuple[int, ...]
    """Of one picture."""
    batch: int
    """0: any. Bounds that inductor writes down are those of its heuristics, and are not looked at:
    whether an image is answered alone as among others is asked anyway (`Model.answers`)."""
    dtype: str
    """Of its input, by torch's name."""
    channels_last: bool
    """Whether a batch lies in memory so."""
    device: str
    """'cpu' or 'cuda'."""
    target: str
    """The vector units, or the compute capability."""
    precision: str
    """By its weights."""


def parts(file: str) -> list[str]:
    """Names of all that is in a file of torch's. Raises InputError where it is none."""
    try:
        with zipfile.ZipFile(Path(file).expanduser()) as archive:
            return [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"model {file!r} is no file of torch.export's: {error}") from error


def is_package(file: str) -> bool:
    """Whether AOTInductor has compiled it. Raises InputError for what is no file of torch's."""
    return file.endswith(".pt2") and any(part.startswith(_FOLDER) for part in parts(file))


def read(file: str) -> Package:
    """What the package in ``file`` takes; nothing of it is run. Raises InputError."""

    def bad(text: str) -> NoReturn:
        raise InputError(
            f"model {file!r} is a compiled package of AOTInductor {text}; give the program that it "
            "was compiled from, saved by torch.export.save"
        )

    own = [part for part in parts(file) if part.startswith(_MODEL)]
    if not own:
        known = sorted({part.split("/")[2] for part in parts(file) if part.startswith(_FOLDER)})
        bad(f"without a network 'model': it has {', '.join(map(repr, known))}")
    with zipfile.ZipFile(Path(file).expanduser()) as archive:
        texts = {
            suffix: "\n".join(
                archive.read(name).decode(errors="replace")
                for name in archive.namelist()
                if name.partition("/")[2] in own and name.endswith(suffix)
            )
            for suffix in (".cpp", "wrapper_metadata.json")
        }
    source = texts[".cpp"]
    if (many := len({*_INPUT.findall(source)})) > 1:
        bad(f"that takes {many} inputs, and pictures are one")
    dims, strides = ({int(at): int(n) for at, n in f.findall(source)} for f in (_DIM, _STRIDE))
    shape = tuple(dims.get(at, 0) for at in (1, 2, 3))
    dtype = next(iter(_DTYPE.findall(source)), "nothing that is known")
    try:
        about = json.loads(texts["wrapper_metadata.json"])
        device = about["AOTI_DEVICE_KEY"]
    except (ValueError, KeyError):
        bad("that does not say which device it is for")
    if 0 in shape or len(strides) != len(shape) + 1:
        bad("whose source does not say the size of pictures")
    if dtype not in _TYPES or device not in ("cpu", "cuda"):
        bad(f"that takes {dtype} on {device}; expected pictures on cpu or cuda")
    first, high, wide = shape
    orders = {
        (prod(shape), high * wide, wide, 1): False,
        (prod(shape), 1, wide * first, first): first > 1,
    }
    laid = tuple(strides[at] for at in sorted(strides))
    if laid not in orders:
        bad(f"whose input has the strides {laid}: expected a contiguous one, or channels_last")
    weights = {*_CONSTANT.findall(source)}
    return Package(
        shape=shape,
        batch=dims.get(0, 0),
        dtype=_TYPES[dtype],
        channels_last=orders[laid],
        device=device,
        target=about.get("AOTI_CPU_ISA" if device == "cpu" else "AOTI_COMPUTE_CAPABILITY", ""),
        precision=next((name for kind, name in _PRECISIONS.items() if kind in weights), "fp32"),
    )


def module(file: str) -> nn.Module:
    """The package, loaded: on the CPU, whatever it runs on. Its weights are no parameters of it."""
    import torch

    about, path = read(file), str(Path(file).expanduser())
    loaded = torch._inductor.aoti_load_package(path)
    layout = torch.channels_last if about.channels_last else torch.contiguous_format

    class Compiled(torch.nn.Module):  # type: ignore[misc]
        def forward(self, images: torch.Tensor) -> object:
            if images.is_meta:
                raise InputError("it is compiled")
            given = images.to(about.device, getattr(torch, about.dtype))
            found = loaded(given.contiguous(memory_format=layout))
            return torch.utils._pytree.tree_map(lambda answer: answer.cpu(), found)

    return Compiled()
