"""What a package of AOTInductor was compiled for, as the source in it says; nothing is compiled."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gpubench.backends import base
from gpubench.errors import InputError
from gpubench.run import availability
from gpubench.suite.types import Workload
from gpubench.workload.models import compiled_package, registry
from tests.backends import tiny


def source(
    dims: dict[int, int], strides: tuple[int, ...], kind: str = "kFloat", weights: str = "float32"
) -> str:
    """Lines as inductor of torch 2.15 writes them."""
    lines = [
        'inputs_info_[0].name = "arg0_1";',
        f"constants_info_[0].dtype = cached_torch_dtype_{weights};",
        'ss << "input_handles[0]: unmatched dtype, "',
        f'   << "expected: " << arg0_1_expected_dtype << "(at::{kind}), "',
    ]
    checks = [("dim", at, size) for at, size in dims.items()]
    checks += [("stride", at, size) for at, size in enumerate(strides)]
    for what, at, size in checks:
        lines += [
            f'ss << "input_handles[0]: unmatched {what} value at {at}, "',
            f'   << "expected: {size}, " << "but got: " << arg0_1_size[{at}]',
        ]
    if 0 not in dims:
        lines += [
            'ss << "input_handles[0]: dim value is too large at 0, "',
            '   << "expected to be <= 15, " << "but got: "',
        ]
    return "\n".join(lines)


SQUARE = {1: 3, 2: 8, 3: 8}
PLAIN, LAST = (192, 64, 8, 1), (192, 1, 24, 3)


def package(file: Path, text: str, device: str = "cpu", name: str = "model") -> Path:
    about = {"AOTI_DEVICE_KEY": device, "AOTI_CPU_ISA": "AVX2", "AOTI_COMPUTE_CAPABILITY": "90"}
    with zipfile.ZipFile(file, "w") as archive:
        for part, body in ((".cpp", text), ("_metadata.json", json.dumps(about)), (".so", "")):
            archive.writestr(f"x/data/aotinductor/{name}/abc.wrapper{part}", body)
    return file


@pytest.mark.parametrize(
    ("text", "device", "expected"),
    [
        (source({0: 2} | SQUARE, PLAIN), "cpu",
         {"batch": 2, "channels_last": False, "target": "AVX2", "precision": "fp32"}),
        (source(SQUARE, LAST, "kHalf", "float16"), "cuda",
         {"batch": 0, "channels_last": True, "target": "90", "precision": "fp16",
          "dtype": "float16"}),
        (source(SQUARE, PLAIN, "kByte", "bfloat16"), "cpu",
         {"dtype": "uint8", "precision": "bf16"}),
    ],
)  # fmt: skip
def test_what_it_takes_is_read(
    tmp_path: Path, text: str, device: str, expected: dict[str, Any]
) -> None:
    found = compiled_package.read(str(package(tmp_path / "x.pt2", text, device)))
    assert (found.shape, found.device) == ((3, 8, 8), device)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "device", "name", "words"),
    [
        (source(SQUARE, PLAIN), "cpu", "first", "without a network 'model': it has 'first'"),
        (source(SQUARE, PLAIN) + '\ninputs_info_[1].name = "b"', "cpu", "model", "2 inputs"),
        (source({1: 3}, PLAIN), "cpu", "model", "does not say the size of pictures"),
        (source(SQUARE, PLAIN, "kLong"), "cpu", "model", "takes kLong on cpu"),
        (source(SQUARE, PLAIN), "xpu", "model", "takes kFloat on xpu"),
        (source(SQUARE, (192, 8, 1, 64)), "cpu", "model", r"strides \(192, 8, 1, 64\)"),
    ],
)
def test_what_cannot_be_a_model_is_told(
    tmp_path: Path, text: str, device: str, name: str, words: str
) -> None:
    file = package(tmp_path / "x.pt2", text, device, name)
    with pytest.raises(InputError, match=f"compiled package of AOTInductor .*{words}"):
        registry.seen(Workload(model=str(file), weights="file"))


def test_cells_that_it_was_not_compiled_for_are_unsupported(tmp_path: Path) -> None:
    file = str(package(tmp_path / "x.pt2", source({0: 2} | SQUARE, PLAIN)))

    def why(backend: str = "aot-inductor", **changes: Any) -> Any:
        cell = tiny.cell(backend, **{"model": file, "weights": "file", "batch_size": 2} | changes)
        return availability.unsupported(cell, base.get(backend))

    assert why() is None
    assert "which only aot-inductor runs" in why("torch-eager")
    assert "which only aot-inductor runs" in why("openvino")
    assert "for cpu: compile it for cuda" in why(device="cuda")
    assert "takes float32: leave input = 'uint8' out" in why(input="uint8")
    assert "fixed batch size of 2, and cannot have 3" in why(batch_size=3)
    assert "is fp32: ask for that precision" in why(precision="bf16")
