"""Decoders that work on a CUDA device, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from gpubench.errors import Unavailable
from gpubench.pipeline.check import difference
from gpubench.pipeline.decoders import base
from gpubench.workload.data.image_file import Unusable
from gpubench.workload.data.preprocess import Spec
from tests.backends import tiny
from tests.hostile.test_pictures import SKIPPED, USED
from tests.pipeline.decoders import samples
from tests.pipeline.decoders.test_dali import made

pytestmark = [
    pytest.mark.skipif(bool(tiny.no_cuda()), reason=tiny.no_cuda() or "-"),
    pytest.mark.slow,
]
SPEC = Spec(size=(224, 224), resize=256)
NAMES = [name for name in base.names() if base.get(name).on_device]


def opened(name: str) -> base.DevicePreprocessor:
    try:
        return base.get(name).open(SPEC, 0)  # type: ignore[return-value]
    except Unavailable as error:
        pytest.skip(f"{error.reason}; {error.remedy}")


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_all_shapes_and_kinds(name: str) -> None:
    import torch

    preprocessor, reference = opened(name), base.get("pil").open(SPEC)
    data = [samples.jpeg(shape) for shape in samples.SHAPES]
    data += [make() for make in samples.KINDS.values()] + [USED["grey16.png"]]
    right = np.empty((len(data), *SPEC.shape), np.float32)
    for picture, place in zip(data, right, strict=True):
        reference.transform(reference.decode(picture), place)  # type: ignore[arg-type]
    stream = torch.cuda.Stream()
    out = torch.full(right.shape, 9.0, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for count in (3, len(data), 3):  # growing and shrinking batches
            preprocessor.transform(preprocessor.decode(data[:count]), out[:count])
        made = out.cpu()
    for at, (one, other) in enumerate(zip(made.numpy(), right, strict=True)):
        largest, mean = difference(SPEC, one[None], other[None])
        assert largest < 60, at
        assert mean < 3, at


@pytest.mark.parametrize("file", SKIPPED)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_use_is_refused(name: str, file: str) -> None:
    import torch

    one, out = opened(name), torch.zeros((2, *SPEC.shape), device="cuda")
    with pytest.raises(Unusable):
        made(one, [samples.jpeg((90, 60)), SKIPPED[file][0]], out)
