from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.backends.base import Device
from gpubench.backends.openvino import OpenVINO
from gpubench.errors import CellFailed, Unavailable
from tests.backends import contract, tiny

pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")

BACKEND = OpenVINO()
CPU = Device("cpu", 0, (0, 1))
OPENVINO = {"BF16": "bf16", "FP16": "f16"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cuda"}, "no cuda device"),
        ({"precision": "amp"}, "amp"),
        ({"precision": "tf32"}, "tf32"),
        ({"options": {"num_streams": 2}}, "2 streams do not fit on 1 core"),
    ],
)
def test_unsupported_says_why(changes: dict[str, object], reason: str) -> None:
    assert reason in (BACKEND.unsupported(tiny.cell("openvino", **changes)) or "")


@pytest.mark.parametrize(
    ("options", "requests"),
    [
        ({}, 1),
        ({"hint": "throughput"}, None),
        ({"hint": "throughput", "num_streams": 2}, 2),
    ],
)
def test_it_runs_as_it_says(
    options: dict[str, object], requests: int | None, onnx_file: Path
) -> None:
    with BACKEND.open(tiny.cell("openvino", options=options), onnx_file, CPU) as session:
        contract.check(BACKEND, session, 4, "fp32")
        facts = session.facts
        assert facts["precision"] == "f32"
        assert facts["layers_by_type"]["f32"] > 0
        assert not {"bf16", "f16"} & set(facts["layers_by_type"])
        assert facts["threads"] == 2
        assert facts["hint"] == options.get("hint", "latency")
        assert facts["requests"] == (requests or facts["requests"])
        assert session.in_flight == (facts["requests"] if facts["requests"] > 1 else 0)
        assert facts["requests"] <= BACKEND.in_flight(tiny.cell("openvino", options=options), 2)


def test_a_precision_that_the_cpu_lacks_is_not_run_as_fp32(
    onnx_file: Path, model: tiny.Model
) -> None:
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in {"BF16", "FP16"} - set(able):
        cell = tiny.cell("openvino", precision=precision.lower())
        with pytest.raises(Unavailable, match=f"no {precision.lower()} units") as caught:
            BACKEND.prepare(cell, model, None)  # type: ignore[arg-type]
        assert "fp32" in caught.value.remedy
        failed, facts = None, {}
        try:
            with BACKEND.open(cell, onnx_file, CPU) as session:
                facts = session.facts
        except CellFailed as error:
            failed = error
        if failed:
            assert (failed.kind, "computes in" in str(failed)) == ("fallback", True)
        else:  # AVX-512 without units of its own converts
            assert facts["precision"] == OPENVINO[precision] in facts["layers_by_type"]
    if "BF16" in able:
        cell = tiny.cell("openvino", precision="bf16")
        with BACKEND.open(cell, onnx_file, CPU) as session:
            contract.check(BACKEND, session, 4, "bf16")
            assert session.facts["precision"] == "bf16"


def test_a_missing_device_is_unavailable(model: tiny.Model) -> None:
    import openvino

    if "GPU" in openvino.Core().available_devices:
        pytest.skip("there is an Intel GPU")
    cell = tiny.cell("openvino", options={"device_name": "GPU"})
    with pytest.raises(Unavailable, match="no GPU device, only CPU"):
        BACKEND.prepare(cell, model, None)  # type: ignore[arg-type]
