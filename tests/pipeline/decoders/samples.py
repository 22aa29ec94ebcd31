"""Encoded photographs of every shape and kind that a decoder may meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO

from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from gpubench.workload.data.preprocess import Spec
from tests.hostile.test_pictures import SKIPPED, USED, encoded

SHAPES = [
    (500, 375),
    (375, 500),
    (333, 251),
    (256, 256),
    (225, 224),
    (640, 64),
    (61, 640),
    (100, 80),
    (1201, 1199),
    (17, 5),
    (1, 1),
]
"""(width, height)"""
ARRANGED = [
    Spec(size=(64, 96), resize=None, layout="NHWC"),
    Spec(size=(96, 64), resize=112, channels="bgr", range=(0, 255), mean=(103.9, 116.8, 123.7),
         std=(1, 1, 1)),
    Spec(size=(48, 48), resize=64, range=(-1, 1), mean=(0, 0.1, 0.2), std=(1, 2, 3), layout="NHWC",
         channels="bgr"),
    Spec(size=(48, 48), resize=50, range=(0, 255), mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8"),
    Spec(size=(48, 40), resize=50, dtype="float16"),
    Spec(size=(64, 48), resize=(72, 60)),
    Spec(size=(32, 32), resize=32, channels="grey", mean=(0.5,), std=(0.25,)),
]  # fmt: skip
"""What networks that are not torchvision's take."""
SPECS = [
    Spec(size=(224, 224), resize=232, interpolation="bicubic"),
    Spec(size=(299, 299), resize=342),
    Spec(size=(96, 96), resize=80),
    Spec(size=(48, 96), resize=64),
    Spec(size=(97, 97), resize=80),
    Spec(size=(28, 28), resize=32, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)),
    Spec(size=(64, 64), resize=64, interpolation="lanczos"),
    Spec(size=(64, 64), resize=64, interpolation="nearest"),
    *ARRANGED,
]


def photo(shape: tuple[int, int]) -> Image.Image:
    whole = Image.fromarray(load_sample_image("china.jpg"))
    return whole.resize(shape, Image.Resampling.BICUBIC)


@cache
def jpeg(shape: tuple[int, int], **options: object) -> bytes:
    return encoded(photo(shape), "JPEG", quality=90, **options)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg((500, 375), exif=exif.tobytes())


SHAPE = (500, 375)
KINDS: dict[str, Callable[[], bytes]] = {
    "progressive": lambda: jpeg(SHAPE, progressive=True),
    "444": lambda: jpeg(SHAPE, subsampling=0),
    "422": lambda: jpeg(SHAPE, subsampling=1),
    "restarts": lambda: jpeg(SHAPE, restart_marker_rows=1),
    "rgb": lambda: jpeg(SHAPE, keep_rgb=True),
    "turned": _turned,
    "grey": lambda: encoded(photo(SHAPE).convert("L"), "JPEG"),
    "cmyk": lambda: encoded(photo(SHAPE).convert("CMYK"), "JPEG"),
    "png": lambda: encoded(photo(SHAPE), "PNG"),
    "clear": lambda: encoded(photo(SHAPE).convert("RGBA"), "PNG"),
    "webp": lambda: encoded(photo(SHAPE), "WEBP"),
    "more after its end": lambda: jpeg(SHAPE) + b"\0" * 1000,
    "something after its end": lambda: jpeg(SHAPE) + b"more" * 100,
}


def stream(kind: str) -> BytesIO:
    return BytesIO(KINDS[kind]())


def damaged(data: st.DataObject) -> bytes:
    """A picture with some bytes changed, perhaps cut, perhaps with an end again."""
    own = [jpeg((90, 60)), jpeg((90, 60), progressive=True), jpeg((90, 61), subsampling=1)]
    bodies = [*own, *own, *USED.values(), *(body for body, _ in SKIPPED.values())]
    body = bytearray(data.draw(st.sampled_from(bodies)))
    for _ in range(data.draw(st.integers(0, 4))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body))) :]
        if data.draw(st.booleans()):
            body += b"\xff\xd9"
    return bytes(body)
