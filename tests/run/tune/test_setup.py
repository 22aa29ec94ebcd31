"""What can be known of a search before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from gpubench.cache import Cache
from gpubench.errors import CalibrationError
from gpubench.run import availability
from gpubench.run import plan as planning
from gpubench.run.plan import Plan
from gpubench.run.tune import setup, space
from gpubench.suite.goal import Goal, Metric
from gpubench.suite.types import Policy
from tests.analysis import searches
from tests.backends.onnx_files import colour_net, conv_net


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """A folder of 16: eight of them may be calibrated on."""
    for n in range(16):
        noise = np.random.default_rng(n).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{n}.png")
    return str(tmp_path)


def plan(images: str, policy: Policy | None = None, **changes: Any) -> Plan:
    kinds = ("torch-eager", "fp32", {}), ("onnxruntime", "int8", {}), ("onnxruntime", "fp32", {})
    few: dict[str, Any] = {"calibration_images": 8}
    cells = [
        searches.cell(backend=backend, precision=precision, options=options, images=images,
                      **changes)
        for backend, precision, options in (*kinds, ("onnxruntime", "int8", few))
    ]  # fmt: skip
    suite = space.suite("tune", cells, policy or Policy(), "torch-eager", "")
    return Plan(suite, cells, [], [0, 1])


def left(found: Plan) -> list[tuple[str, str, bool]]:
    return [(c.backend, c.precision, bool(c.options)) for c in found.cells]


def test_int8_that_there_are_too_few_pictures_for_is_left_out_at_once(
    pictures: str, tmp_path: Path
) -> None:
    known, cache = availability.catalog(), Cache(tmp_path / "cache")
    found = setup._calibrated(plan(pictures), known, cache)
    assert left(found) == [("torch-eager", "fp32", False), ("onnxruntime", "fp32", False),
                           ("onnxruntime", "int8", True)]  # fmt: skip
    [skip] = found.skips
    assert skip.reason.startswith("calibration needs 128 pictures, and there are 8 of the 8 in ")
    assert skip.remedy == "--calibration FOLDER with at least 128"
    assert left(setup._calibrated(plan("digits"), known, cache)) == left(plan("digits"))
    with pytest.raises(CalibrationError, match="needs 128 pictures, and there are 16 in"):
        setup._calibrated(plan("digits", calibration=pictures), known, cache)


def test_a_floor_that_no_answers_could_be_shown_to_keep(pictures: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    asked = Policy(min_accuracy=0.9, accuracy_images=256)
    said = planning.undecidable(plan(pictures, asked).suite, cache)
    assert said.startswith("min_accuracy = 0.9 cannot be decided with 16 images, even if all ")
    assert planning.undecidable(plan("digits", asked).suite, cache) == ""
    assert planning.undecidable(plan(pictures, replace(asked, min_accuracy=0.5)).suite, cache) == ""
    assert planning.undecidable(plan(pictures).suite, cache) == ""


def fixed_in_fp16(folder: Path) -> tuple[Path, str, int]:
    return conv_net(folder / "net.onnx", "fp16", batch=6), "fp16", 6


def fixed_in_what_is_reshaped_to(folder: Path) -> tuple[Path, str, int]:
    return colour_net(folder / "net.onnx", reshape=(4, 3)), "fp32", 4


def fixed_program(folder: Path) -> tuple[Path, str, int]:
    import torch
    from torch import nn

    module, file = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(), folder / "net.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(3, 3, 8, 8),)), file)
    return file, "fp32", 3


@pytest.mark.parametrize(
    "made", [fixed_in_fp16, fixed_in_what_is_reshaped_to, fixed_program], ids=lambda f: f.__name__
)
def test_what_a_file_fixes_is_todays_default_and_the_space(tmp_path: Path, made: Any) -> None:
    file, precision, batch = made(tmp_path)
    words = {"model": str(file), "images": "synthetic", "device": "cpu", "boundary": "transfer",
             "backend": ["onnxruntime"], "replicas": [1], "precision": [precision],
             "input": ["float32"]}  # fmt: skip
    job = setup.job(
        words, Goal(Metric("throughput")), {}, budget_s=5, seed=0, baseline=["backend=onnxruntime"],
        cache_dir=tmp_path / "cache", output=tmp_path / "out", resume=False,
    )  # fmt: skip
    assert {(c.precision, c.batch_size) for c in job.plan.planned} == {(precision, batch)}
    assert not job.plan.skips
