"""Every registered decoder, built in or not, keeps the interface of `pipeline.decoders.base`."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gpubench.errors import InputError, Unavailable, Unsupported
from gpubench.pipeline.check import difference
from gpubench.pipeline.decoders import base
from gpubench.workload.data import image_file
from gpubench.workload.data.preprocess import Spec
from tests.hostile.commands import fuzz
from tests.hostile.test_pictures import SKIPPED, USED
from tests.pipeline.decoders import samples

NAMES = base.names()
HOST = [name for name in NAMES if not base.get(name).on_device]
SPEC = Spec(size=(224, 224), resize=256)
BOUNDS = {"pil": (0, 0), "torchvision": (1.01, 0.05)}
"""Largest and mean difference in steps of 8-bit pixels, on photographs; a faster one may have
more, and what it has is reported with its speed."""
OTHERS = (45, 1.5)


def opened(name: str, spec: Spec = SPEC) -> Any:
    try:
        return base.get(name).open(spec)
    except Unavailable as error:
        pytest.skip(f"{error.reason}; {error.remedy}")


def made(preprocessor: Any, data: bytes, spec: Spec = SPEC) -> np.ndarray:
    """One input, written into the middle of a batch that must stay as it is elsewhere."""
    batch = np.full((3, *spec.shape), 7, spec.dtype)
    preprocessor.transform(preprocessor.decode(data), batch[1])
    assert (batch[[0, 2]] == 7).all()
    return batch[1]


def reason(preprocessor: Any, data: bytes) -> str:
    """Why it is unusable; '' when it is not."""
    try:
        preprocessor.decode(data)
    except image_file.Unusable as error:
        return str(error)
    return ""


def test_the_built_ins_are_registered() -> None:
    assert {"pil", "torchvision", "turbo", "nvjpeg", "dali"} <= set(NAMES)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(InputError, match=r"unknown decoder 'jpeg'.*turbo"):
        base.get("jpeg")


@pytest.mark.parametrize("name", NAMES)
def test_declarations(name: str) -> None:
    decoder = base.get(name)
    assert decoder.name == name
    assert decoder.summary
    assert "\n" not in decoder.summary
    assert isinstance(decoder.preload, tuple)
    assert decoder.unsupported("cuda") is None
    assert bool(decoder.unsupported("cpu")) == decoder.on_device
    try:
        facts = decoder.probe()
    except Unavailable as error:
        facts = {"reason": error.reason, "remedy": error.remedy}
        assert all(facts.values())
    assert facts
    assert json.loads(json.dumps(facts)) == facts


_IMPORT = """
import sys
from gpubench.pipeline.decoders import base
from gpubench.errors import Unavailable
for name in base.names():
    decoder = base.get(name)
    decoder.unsupported("cpu")
    try:
        decoder.probe()
    except Unavailable:
        pass
heavy = {"numpy", "torch", "torchvision", "PIL", "simplejpeg", "nvidia"}
print(*sorted({module.partition(".")[0] for module in sys.modules} & heavy))
"""


def test_nothing_heavy_is_imported_before_open() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("shape", samples.SHAPES, ids=str)
@pytest.mark.parametrize("name", HOST)
def test_geometry_is_the_references(name: str, shape: tuple[int, int]) -> None:
    """A shift by one pixel makes a mean difference of 7 steps and more in what is not enlarged."""
    preprocessor, data = opened(name), samples.jpeg(shape)
    ours, right = made(preprocessor, data), made(opened("pil"), data)
    largest, mean = difference(SPEC, ours[None], right[None])
    most, average = BOUNDS.get(name, OTHERS)
    assert largest <= most
    assert mean <= average


@pytest.mark.parametrize("spec", samples.SPECS, ids=str)
@pytest.mark.parametrize("name", HOST)
def test_other_networks_inputs(name: str, spec: Spec) -> None:
    data = samples.jpeg((500, 375))
    right = made(opened("pil", spec), data, spec)
    opened(name)  # or skip
    not_its = [f"'{spec.interpolation}'"] if spec.interpolation in ("nearest", "lanczos") else []
    not_its += ["grey"] if spec.channels == "grey" else []
    if name != "pil" and not_its:
        with pytest.raises(Unsupported, match=f"{not_its[0]}.*use the decoder 'pil'"):
            base.get(name).open(spec)
        return
    preprocessor = opened(name, spec)
    largest, mean = difference(spec, made(preprocessor, data, spec)[None], right[None])
    most, average = BOUNDS.get(name, OTHERS)
    # Of a bicubic filter Pillow and torch round the negative lobes differently.
    assert largest <= (most if spec.interpolation == "bilinear" else most + 6)
    assert mean <= average + 0.1


@pytest.mark.parametrize("kind", samples.KINDS)
@pytest.mark.parametrize("name", HOST)
def test_every_kind_of_jpeg(name: str, kind: str) -> None:
    data = samples.KINDS[kind]()
    ours, right = made(opened(name), data), made(opened("pil"), data)
    largest, mean = difference(SPEC, ours[None], right[None])
    most, average = BOUNDS.get(name, OTHERS)
    assert largest <= most
    assert mean <= average


@pytest.mark.parametrize("file", USED)
@pytest.mark.parametrize("name", HOST)
def test_every_kind_of_picture(name: str, file: str) -> None:
    """Noise of 60 x 40: its differences are larger than a photograph's."""
    ours, right = made(opened(name), USED[file]), made(opened("pil"), USED[file])
    largest, mean = difference(SPEC, ours[None], right[None])
    assert largest <= (2 if name in BOUNDS else 255)
    assert mean <= (0.1 if name in BOUNDS else 25)


@pytest.mark.parametrize("file", SKIPPED)
@pytest.mark.parametrize("name", HOST)
def test_what_is_no_use_is_refused_for_the_same_reason(name: str, file: str) -> None:
    data = SKIPPED[file][0]
    assert reason(opened(name), data) == (reason(opened("pil"), data) or "accepted")


@fuzz(150)
@given(data=st.data())
def test_damaged_files_have_the_same_fate(data: st.DataObject) -> None:
    picture = samples.damaged(data)
    fates = {name: reason(opened(name), picture) for name in HOST}
    assert set(fates.values()) == {fates["pil"]}, fates


@pytest.mark.parametrize("name", HOST)
def test_same_bytes_same_pixels_in_several_threads_at_once(name: str) -> None:
    many = [samples.jpeg(shape) for shape in ((500, 375), (320, 240), (200, 300), (90, 60))]
    expected = [made(opened(name), data) for data in many]

    def work(turn: int) -> bool:
        own, order = opened(name), [(turn + n) % len(many) for n in range(12)]
        return all(np.array_equal(made(own, many[n]), expected[n]) for n in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_large_photographs_are_averaged_as_the_reference_does() -> None:
    data = samples.jpeg((3001, 1999))
    right = made(opened("pil"), data)
    for name in HOST:
        largest, mean = difference(SPEC, made(opened(name), data)[None], right[None])
        most, average = BOUNDS.get(name, OTHERS)
        assert (largest <= most, mean <= average) == (True, True), name


def test_pixels_kept_are_those_of_the_reference() -> None:
    """Also when a later picture was decoded meanwhile: a loader may hold several."""
    for name in HOST:
        preprocessor, first = opened(name), samples.jpeg((500, 375))
        held = preprocessor.decode(first)
        preprocessor.decode(samples.jpeg((500, 374)))
        out = np.empty(SPEC.shape, np.float32)
        preprocessor.transform(held, out)
        assert np.array_equal(out, made(opened(name), first)), name


def test_difference_is_in_steps_of_pixels() -> None:
    spec = Spec(size=(2, 2), resize=2, std=(0.5, 0.25, 1.0))
    one = np.zeros((2, 3, 2, 2), np.float32)
    other = one.copy()
    other[1, 1, 0, 0] = 10 / 255 / 0.25
    largest, mean = difference(spec, one, other)
    assert largest == pytest.approx(10)
    assert mean == pytest.approx(10 / one.size)
    other[0, 0, 0, 0] = np.nan
    assert np.isnan(difference(spec, one, other)).all()


def test_samples_are_what_they_say() -> None:
    assert Image.open(samples.stream("progressive")).info.get("progressive")
    assert Image.open(samples.stream("cmyk")).mode == "CMYK"
    assert Image.open(samples.stream("turned")).getexif()[0x0112] == 6
