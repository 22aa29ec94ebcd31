"""DALI's pipelines on the host, where DALI is installed, and what is said where it is not."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from gpubench.errors import Unavailable
from gpubench.pipeline.check import difference
from gpubench.pipeline.decoders import base, dali
from gpubench.workload.data.preprocess import Spec
from tests.pipeline.decoders import samples

HERE = importlib.util.find_spec("nvidia.dali") is not None
SPECS = [Spec(size=(224, 224), resize=256), Spec(size=(96, 96), resize=80), *samples.ARRANGED[:-1]]


@pytest.mark.skipif(not HERE, reason="needs the extra: pip install 'gpubench[dali]'")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_pipelines_keep_the_references_geometry(spec: Spec) -> None:
    data = [samples.jpeg(shape) for shape in samples.SHAPES]
    decoding = dali.decoding(len(data), None)
    transforming = dali.transforming(spec, len(data), None)
    (pixels,) = decoding.run(encoded=[np.frombuffer(picture, np.uint8) for picture in data])
    arrays = [np.array(pixels[n]) for n in range(len(data))]
    size, start = dali.places(spec, [(a.shape[1], a.shape[0]) for a in arrays])
    (made,) = transforming.run(pixels=arrays, size=size, start=start)
    right, reference = [], base.get("pil").open(spec)
    for picture in data:
        right.append(np.empty(spec.shape, spec.dtype))
        reference.transform(reference.decode(picture), right[-1])  # type: ignore[arg-type]
    largest, mean = difference(spec, np.array(made.as_tensor()), np.stack(right))
    assert largest < 20
    assert mean < 0.3


@pytest.mark.skipif(HERE, reason="DALI is installed")
def test_its_absence_has_a_remedy() -> None:
    with pytest.raises(Unavailable) as caught:
        base.get("dali").open(SPECS[0])
    assert "gpubench[dali]" in caught.value.remedy


def test_places_are_rows_first() -> None:
    size, start = dali.places(SPECS[0], [(500, 375), (375, 500)])
    assert [list(pair) for pair in size] == [[256, 341], [341, 256]]
    assert [list(pair) for pair in start] == [[16, 58], [58, 16]]
