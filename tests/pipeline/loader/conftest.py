"""A data set and a decoder of numbers, so that what a row holds says which picture it is."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpubench.pipeline import loader
from gpubench.pipeline.decoders import base
from gpubench.pipeline.loader import worker
from gpubench.workload.data.image_file import Unusable
from gpubench.workload.data.preprocess import Spec

CROP = 4
KINDS = ("threads", "processes")


class Numbers:
    """Picture i is the text of i; ``bad``: why some are no use."""

    classes: tuple[str, ...] = ()

    def __init__(self, count: int, bad: dict[int, str] | None = None) -> None:
        self._count, self._bad = count, bad or {}

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"picture-{index}.jpg"

    def label(self, index: int) -> int:
        return -1

    def read(self, index: int) -> bytes:
        if index in self._bad:
            raise Unusable(self._bad[index])
        return str(index).encode()


class Decoder:
    """Fills a row with the picture's number; ``before`` is called with it first."""

    name = "numbers"
    on_device = False

    def __init__(self, before: Callable[[int], object]) -> None:
        self.facts: dict[str, Any] = {}
        self._before = before

    def open(self, spec: Spec, index: int | None = None) -> Decoder:
        return self

    def decode(self, data: bytes) -> int:
        self._before(int(data))
        return int(data)

    def transform(self, pixels: int, out: Any) -> None:
        out[...] = pixels


Open = Callable[..., loader.Loader]


@pytest.fixture(autouse=True)
def nothing_left(few_objects: None) -> Iterator[None]:
    """Children, threads, open files and named shared memory are as before."""
    gc.collect()
    before = _here()
    yield
    gc.collect()
    assert _here() == before


def _here() -> dict[str, object]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {
        "children": children,
        "threads": {thread.name for thread in threading.enumerate()},
        "files": sorted(Path("/proc/self/fd").iterdir()),
        "mappings": [line for line in _lines("/proc/self/maps") if "/dev/zero" in line],
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


@pytest.fixture
def open_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Open]:
    """open_numbers(count, batch, bad=..., before=..., kind=...) -> a loader, closed at the end."""
    opened: list[loader.Loader] = []

    def make(
        count: int,
        batch: int,
        bad: dict[int, str] | None = None,
        before: Callable[[int], object] = lambda _: None,
        on_device: bool = False,
        **options: Any,
    ) -> loader.Loader:
        decoder = Decoder(before)
        decoder.on_device = on_device
        monkeypatch.setattr(base, "get", lambda _: decoder)
        monkeypatch.setattr(worker, "dataset", lambda _: Numbers(count, bad or {}))
        core = min(os.sched_getaffinity(0))
        settings: dict[str, Any] = {"kind": "threads", "cores": (core, core)} | options
        spec = Spec(size=(CROP, CROP), resize=CROP)
        opened.append(loader.Loader(tmp_path, "numbers", spec, batch, **settings))
        return opened[-1]

    yield make
    while opened:
        opened.pop().close()
    monkeypatch.undo()
