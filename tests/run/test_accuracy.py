"""Accuracy over labelled images, its floors and disagreements, from a suite to its records."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from gpubench.analysis.summary import summarise
from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.records.record import RecordFile
from gpubench.run import driver, record_builder, setup
from gpubench.run.agent.messages import Done
from gpubench.run.watcher import Silent
from gpubench.suite.types import Workload
from gpubench.workload.data import preprocess
from gpubench.workload.models.registry import resolve
from tests.conftest import POLICY
from tests.fakes.gpubench_fakes import logits

Run = Callable[..., RecordFile]
EACH = 9
LOOSE = {"max_relative_error": 100.0, "min_top1_agreement": 0.5, "accuracy_images": 10 * EACH}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_onnx: Path, cache_dir: Path) -> Path:
    """Random pictures in a folder for each class; the fake is right about all of them."""
    root, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    spec = resolve(Workload(model=str(tiny_onnx), weights="file"), Cache(cache_dir)).spec
    have = np.zeros(10, int)
    while have.min() < EACH:
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((2, 2, 1))).astype(np.uint8)
        label = int(logits(preprocess.apply(spec, pixels)[None]).argmax())
        if have[label] < EACH:
            place = root / f"kind {label}"
            place.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(place / f"{have[label]}.png")
            have[label] += 1
    return root


@pytest.fixture
def run(fakes: None, tmp_path: Path, cache_dir: Path, tiny_onnx: Path, folder: Path) -> Run:
    def start(fail: str = "", images: str = "", said: str = "", **policy: Any) -> RecordFile:
        rules = POLICY | {"parity_images": 8} | LOOSE | policy
        (tmp_path / "s.toml").write_text(
            f'[workload]\nmodel = "{tiny_onnx}"\nimages = "{images or folder}"\n'
            f"{said and '[workload.preprocess]'}\n{said}\n"
            '[axes]\nbackend = ["fake"]\nscenario = ["latency"]\ndevice = "cpu"\ncores = 1\n'
            f'batch_size = [4]\n[axes.options.fake]\nfail = "{fail}"\n[policy]\n'
            + "\n".join(f"{key} = {value}" for key, value in rules.items())
        )
        place = str(tmp_path / "s.toml")
        session = setup.session(place, {}, cache_dir, tmp_path / "run", False, ())
        return driver.run(session, Silent())

    return start


def test_an_honest_backend_keeps_every_floor(run: Run) -> None:
    first, second = run(min_accuracy=1.0, max_accuracy_drop=0.0).records
    for record in (first, second):
        assert record.status == "ok", record.reason
        assert record.parity
        assert record.parity.disagreements == []
    assert first.parity
    assert second.parity
    assert (first.parity.labelled, first.parity.correct) == (90, 90)
    assert first.parity.assumed
    assert first.parity.preprocessing.endswith(
        "bilinear, ImageNet's mean and std (assumed: the file does not say)"
    )
    assert first.parity.correct5 == first.parity.reference_correct5 == 90
    assert (second.parity.labelled, second.parity.min_accuracy) == (8, None)


def test_records_say_how_pictures_became_inputs_and_who_says_so(run: Run) -> None:
    [record] = run(said="mean = 0.9\nstd = 0.1\nchannels = 'bgr'", max_repeats=1, repeats=1).records
    assert record.parity
    assert record.parity.passed, "the reference and the backend get the same inputs"
    assert record.parity.reference_correct < 60, "which the network was not made for"
    assert "mean 0.9, std 0.1, bgr (mean, std, channels given" in record.parity.preprocessing


def test_a_backend_that_is_wrong_about_a_class_fails_the_floor(run: Run) -> None:
    file = run("wrong-class", min_accuracy=0.95, max_accuracy_drop=5)
    [record] = file.records
    assert (record.status, record.kind) == ("failed", "accuracy")
    assert record.reason == (
        "top-1 accuracy 0.900 (81 of 90) is below min_accuracy 0.95 and is 10.00 points below the "
        "reference's 1.000 on the same images (max_accuracy_drop 5)"
    )
    assert record.value() is not None  # the timing is kept
    parity = record.parity
    assert parity
    assert parity.passed
    assert parity.disagreeing == EACH
    assert {(d.answer, d.expected, d.label) for d in parity.disagreements} == {
        ("kind 4", "kind 3", "kind 3")
    }
    assert len({d.name for d in parity.disagreements}) == EACH
    for d in parity.disagreements:
        assert base64.b64decode(d.thumbnail)[:2] == b"\xff\xd8"
    [summary] = summarise([file])
    assert summary.status == "failed: accuracy"
    assert summary.timed
    assert not summary.ranked


def test_the_same_backend_passes_without_a_floor(run: Run) -> None:
    first, second = run("wrong-class", min_accuracy=0.9).records
    assert (first.status, second.status) == ("ok", "ok")
    assert first.parity
    assert (first.parity.correct, first.parity.disagreeing) == (81, EACH)


def test_parity_fails_before_accuracy(run: Run) -> None:
    [record] = run("wrong-class", min_accuracy=0.95, min_top1_agreement=0.95).records
    assert record.kind == "parity"
    assert record.parity
    assert record.parity.disagreements
    for weights, precision, words in (
        ("probe", "int8", "probe weights say little of int8"), ("own", "int8", "calibration"),
        ("probe", "bf16", "probe weights may lose more in bf16"),
    ):  # fmt: skip
        cell = replace(record.cell, precision=precision, weights=weights)
        again = record_builder.measured(cell, 0, Done(record), {})
        assert (again.status, again.kind) == ("failed", "parity")
        assert words in again.remedy, "where few bits are what changed the answers"


def test_a_run_says_why_it_has_no_accuracy(run: Run) -> None:
    file = run(images="photos")
    why = "no accuracy: images 'photos' have no labels"
    assert {r.facts["labelling"] for r in file.records} == {why}
    assert file.notes == [why]


def test_a_floor_without_labels_is_bad_input(run: Run) -> None:
    with pytest.raises(InputError, match=r"policy.min_accuracy = 0.9: images 'photos' have no"):
        run(images="photos", min_accuracy=0.9)
