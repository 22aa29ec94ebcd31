"""Decoding and preprocessing on one core, against Pillow and torchvision's reference transform."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from gpubench.cache import Cache
from gpubench.pipeline.check import difference
from gpubench.pipeline.decoders import base
from gpubench.suite.types import Workload
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models.registry import resolve

SPEC = Spec(size=(224, 224), resize=256)
COUNT, ROUNDS = 24, 40
Way = Callable[[bytes], object]


def photographs(count: int) -> list[bytes]:
    """JPEG photographs of 500 x 375, quality 90: parts of scikit-learn's two."""
    rng, made = np.random.default_rng(0), []
    for n in range(count):
        photo = Image.fromarray(load_sample_images().images[n % 2])
        height = int(rng.integers(300, photo.height + 1))
        width = height * 4 // 3
        left = int(rng.integers(photo.width - width + 1))
        top = int(rng.integers(photo.height - height + 1))
        part = photo.crop((left, top, left + width, top + height)).resize((500, 375))
        out = BytesIO()
        part.save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def usual() -> Way:
    """What torchvision documents for its weights."""
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(crop_size=SPEC.size[0], resize_size=SPEC.resize)
    return lambda data: preset(Image.open(BytesIO(data)).convert("RGB"))


def ours(name: str) -> Way:
    preprocessor, out = base.get(name).open(SPEC), np.empty(SPEC.shape, np.float32)

    def way(data: bytes) -> np.ndarray:
        preprocessor.transform(preprocessor.decode(data), out)  # type: ignore[arg-type]
        return out

    return way


def test_speed(figure: Callable[[str, float, float], None]) -> None:
    """CPU time of one thread, so that neighbours on this core count for neither side."""
    data = photographs(COUNT)
    ways = {"usual": usual()} | {name: ours(name) for name in ("pil", "torchvision", "turbo")}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begin = time.thread_time()
            for picture in data:
                way(picture)
            took[name].append((time.thread_time() - begin) / COUNT)
    ratio = {n: float(np.median(np.divide(took["usual"], t))) for n, t in took.items()}
    for name, seconds in took.items():
        print(f"\n{name}: {1 / np.median(seconds):.0f} images/s a core, {ratio[name]:.2f} x usual")
    figure("CPU time of turbo / 1 of 2.5 of the usual", 2.5 / ratio["turbo"], 1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["torchvision", "turbo"])
def test_answers(name: str, figure: Callable[[str, float, float], None], tmp_path: Path) -> None:
    """ResNet-50 with probe weights, in ONNX Runtime, on what either way makes of a picture."""
    import onnxruntime

    data, reference, way = photographs(200), usual(), ours(name)
    right = np.stack([np.asarray(reference(picture)) for picture in data])
    made = np.stack([np.array(way(picture)) for picture in data])
    model = resolve(Workload(model="resnet50", weights="probe"), Cache(tmp_path))
    network = onnxruntime.InferenceSession(
        str(model.onnx("fp32")), providers=["CPUExecutionProvider"]
    )
    at = network.get_inputs()[0].name

    def answers(images: np.ndarray) -> np.ndarray:
        parts = (images[i : i + 8] for i in range(0, len(images), 8))
        return np.concatenate([network.run(None, {at: p})[0] for p in parts]).argmax(1)

    expected = answers(right)
    print(f"\n{name}: {len(np.unique(expected))} different answers among {len(expected)}")
    most, mean = difference(SPEC, made, right)
    print(f"{name}: differs by at most {most:.2f} of 255, {mean:.4f} on average")
    figure("share of other answers", float(np.mean(answers(made) != expected)), 0.01)
