"""The loader: memory over a large folder, its rate, and batches handed over without a copy."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.pipeline import loader
from gpubench.pipeline.loader import worker
from gpubench.pipeline.loader.ring_buffer import Ring
from gpubench.workload.data import dataset_index, image_folder
from gpubench.workload.data.preprocess import Spec
from tests.backends import tiny

Figure = Callable[[str, float, float], None]
CORES = tuple(sorted(os.sched_getaffinity(0)))
MANY, DISTINCT = 100_000, 300
ROUNDS = 5


def folder(place: Path, size: tuple[int, int], count: int, distinct: int, monkeypatch: Any) -> Path:
    """A data set of ``count`` JPEG files, many of them hard links; loaders are to open it."""
    root, rng = place / "pictures", np.random.default_rng(0)
    (root / "class").mkdir(parents=True)
    for number in range(count):
        path = root / "class" / f"{number:06}.jpg"
        if number >= distinct:
            path.hardlink_to(root / "class" / f"{number % distinct:06}.jpg")
            continue
        pixels = rng.integers(0, 255, (size[1] // 16 + 2, size[0] // 16 + 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(path, quality=90)
    image_folder.find(root).save(place / "listing")
    monkeypatch.setattr(worker, "dataset", dataset_index.load)
    return place / "listing"


def held_kb() -> int:
    """What this process and its children hold: proportional, so that shared pages count once.

    Without pages of files, such as libraries, whose shares change with strangers' processes.
    """
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in ("self", *children)]
    found = [re.findall(r"^Pss_(?:Anon|Shmem): +(\d+)", text, re.M) for text in rollups]
    return sum(int(size) for sizes in found for size in sizes)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_memory_over_100_000_pictures(
    figure: Figure, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder(tmp_path, (32, 32), MANY, DISTINCT, monkeypatch)
    seen, held = 0, []
    with loader.Loader(
        data, "pil", Spec(size=(32, 32), resize=32), 32, kind=kind, cores=CORES
    ) as one:
        while seen < MANY:
            for _ in range(5000 // 32):
                one.release(one.next())
                seen += 32
            held.append(held_kb())
        print(f"\n{kind}: {seen} pictures, KiB after every 5000: {held}")
        assert one.facts["skipped"] == {}
    figure("growth after the first tenth", max(held[2:]) / held[1] - 1, 0.05)


def test_rate_against_one_decoder_in_a_plain_loop(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photographs of 500 x 375; on one core, then on all of them."""
    data, spec, batch = (
        folder(tmp_path, (500, 375), 64, 64, monkeypatch),
        Spec(size=(224, 224), resize=256),
        16,
    )

    def serial() -> float:
        ring = Ring(1, batch, spec, 1, encoded=False)
        job = worker.LoaderJob(data, "pil", spec, ring, np.arange(64), 1)
        fill = worker.Filler(job, 0, lambda _: None).fill
        return rate(lambda: [fill(row) for row in range(batch)])

    def loaded(kind: Any, cores: tuple[int, ...]) -> float:
        with loader.Loader(data, "pil", spec, batch, kind=kind, cores=cores) as one:
            return rate(lambda: one.release(one.next()))

    def rate(step: Callable[[], object]) -> float:
        """Images/s, after so many batches that the ring's head start has been used up."""
        for _ in range(8):
            step()
        begin, batches = time.perf_counter(), 0
        while time.perf_counter() - begin < 0.7:
            step()
            batches += 1
        return batches * batch / (time.perf_counter() - begin)

    ways: dict[str, Callable[[], float]] = {"serial": serial}
    for kind in ("threads", "processes"):
        for cores in (CORES[:1], CORES):
            ways[f"{kind} x{len(cores)}"] = lambda k=kind, c=cores: loaded(k, c)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            rates[name].append(way())
    ratios = {
        name: median(r / s for r, s in zip(of, rates["serial"], strict=True))
        for name, of in rates.items()
    }
    print("\n" + ", ".join(f"{n}: {median(rates[n]):.0f} images/s = {r:.2f} x serial"
                           for n, r in ratios.items()))  # fmt: skip
    figure("lost on one core, the better kind", 1 - max(
        ratios["threads x1"], ratios["processes x1"]), 0.1)  # fmt: skip


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "torch-eager"])
def test_hand_over_without_a_copy(
    figure: Figure, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time of copy_in of an attached batch over that of one that is copied."""
    from gpubench.workload.models import builder

    monkeypatch.setattr(builder, "load_module", lambda state: tiny.module())
    batch, backend = 64, base.get(name)
    cell = tiny.cell(name, batch_size=batch)
    entry = backend.prepare(cell, tiny.Model(tmp_path), Cache(tmp_path / "cache"))  # type: ignore[arg-type]
    arrays = Ring(2, batch, tiny.SPEC, 1, encoded=False).slots
    other = np.zeros_like(arrays[0])
    took: dict[str, list[int]] = {"attached": [], "copied": []}
    with backend.open(cell, entry, base.Device("cpu", 0, CORES[:1])) as session:
        assert session.attach(arrays)  # type: ignore[attr-defined]
        for turn in range(200):
            for way, images in (("attached", arrays[turn % 2]), ("copied", other)):
                begin = time.perf_counter_ns()
                session.copy_in(images)
                took[way].append(time.perf_counter_ns() - begin)
                session.run()
                session.sync()
    print("\n" + ", ".join(f"{way}: {median(ns) / 1e3:.2f} us" for way, ns in took.items()))
    figure("copy_in attached / copied", median(took["attached"]) / median(took["copied"]), 0.2)
