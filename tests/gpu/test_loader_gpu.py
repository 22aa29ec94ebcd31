"""A loader's page-locked slots, copied by the device itself, on CUDA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import Unavailable
from gpubench.pipeline import loader
from gpubench.pipeline.decoders import base as decoders
from gpubench.pipeline.loader import worker
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models import builder
from tests.backends import contract, tiny
from tests.pipeline.loader.conftest import Decoder, Numbers

pytestmark = [
    pytest.mark.skipif(bool(tiny.no_cuda()), reason=tiny.no_cuda() or "-"),
    pytest.mark.slow,
]


class Noise(Decoder):
    """Picture i is `tiny.images` of seed i."""

    def transform(self, pixels: int, out: Any) -> None:
        out[...] = tiny.images(1, pixels)[0]


@pytest.mark.parametrize(
    ("name", "precision", "options"),
    [
        ("torch-eager", "fp32", {}),
        ("torch-eager", "fp16", {"memory_format": "channels_last"}),
        ("torch-eager", "fp32", {"cuda_graph": True}),
        ("onnxruntime", "fp32", {}),
        ("tensorrt", "fp32", {}),
    ],
)
def test_batches_overlap_and_answers_are_right(
    name: str,
    precision: str,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch is copied in and run before the answers to the one before are collected."""
    monkeypatch.setattr(builder, "load_module", lambda state: tiny.module())
    monkeypatch.setattr(decoders, "get", lambda _: Noise(lambda _: None))
    monkeypatch.setattr(worker, "dataset", lambda _: Numbers(50, {}))
    backend, batch = base.get(name), 4
    cell = tiny.cell(
        name, device="cuda", cores=0, precision=precision, options=options, batch_size=batch
    )
    try:
        backend.probe()
        artefact = backend.prepare(cell, tiny.Model(tmp_path), Cache(tmp_path / "c"))  # type: ignore[arg-type]
    except Unavailable as error:
        pytest.skip(f"{error.reason}; {error.remedy}")
    cores = tuple(os.sched_getaffinity(0))[:2]
    spec = Spec(size=(tiny.CROP, tiny.CROP), resize=tiny.CROP)
    opened = loader.Loader(tmp_path, "x", spec, batch, kind="processes", cores=cores, pin=True)
    with opened as one, backend.open(cell, artefact, base.Device("cuda", 0)) as session:
        assert session.attach(one.slots)  # type: ignore[attr-defined]
        assert one.facts["pinned"]
        held: list[tuple[loader.Slot, Any]] = []
        for _ in range(30):
            slot = one.next()
            session.copy_in(slot.images)
            session.run()
            held.append((slot, session.enqueue_out()))  # type: ignore[attr-defined]
            if len(held) == 2:
                before, ticket = held.pop(0)
                got = session.collect(ticket)  # type: ignore[attr-defined]
                expected = tiny.reference(before.images.copy())
                assert contract.same(got, expected, contract.TOLERANCE[precision])
                one.release(before)
