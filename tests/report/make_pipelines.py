"""Seeded synthetic records of whole paths: every boundary, decoder, stage, and kind of answer."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from msgspec.structs import replace

from gpubench.records.parity import Disagreement, Parity, PipelineCheck
from gpubench.records.record import Record, RecordFile
from gpubench.records.samples import Samples
from gpubench.suite.types import Cell
from tests.report import make
from tests.report.make import MS

US = 1000
DECODERS = {"pil": (5.0, 2.4), "torchvision": (4.1, 1.3), "turbo": (1.6, 0.5)}
"""ms of one image: decode, transform."""
SKIPPED = {"truncated": 2, "too large": 1}
"""As the loader counts them."""


def cells(
    backends: tuple[str, ...] = ("torch-eager", "onnxruntime", "openvino"),
    decoders: tuple[str, ...] = tuple(DECODERS),
    batches: tuple[int, ...] = (8,),
    scenarios: tuple[str, ...] = ("latency", "throughput"),
) -> list[Cell]:
    """Compute, transfer, and a pipeline for each decoder."""
    base = {"cores": 2, "images": "photos"}
    found = []
    for scenario in scenarios:
        for backend in backends:
            for batch in batches:
                one = {**base, "scenario": scenario, "backend": backend, "batch_size": batch}
                found += [make.cell(**one, boundary=b) for b in ("compute", "transfer")]
                found += [make.cell(**one, boundary="pipeline", decoder=d) for d in decoders]
    return found


def stages(c: Cell) -> dict[str, int]:
    """ns per batch, in the order in which they are recorded."""
    decode, transform = (ms * MS * c.batch_size for ms in DECODERS.get(c.decoder, (3.0, 1.0)))
    alone = {
        "read": 120 * US * c.batch_size, "decode": int(decode), "transform": int(transform),
        "copy_in": 300 * US, "run": int(make.batch_ns(c)), "copy_out": 20 * US,
        "postprocess": 200 * US,
    }  # fmt: skip
    if c.scenario == "throughput":
        alone["loader"] = sum(alone[k] for k in ("read", "decode", "transform"))
        alone["session"] = sum(alone[k] for k in ("copy_in", "run", "copy_out", "postprocess"))
    return alone


def true_ns(c: Cell) -> float:
    """The true time of one batch."""
    if c.boundary == "compute":
        return make.batch_ns(c)
    if c.boundary == "transfer":
        return make.batch_ns(c) + 320 * US
    alone = stages(c)
    if c.scenario == "latency":
        return sum(alone.values())
    return max(alone["loader"], alone["session"]) / 0.93


def thumbnail(shade: int = 120, side: int = 48) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 90, 200 - shade // 2)).save(out, "JPEG")
    return base64.b64encode(out.getvalue()).decode()


def disagreements(c: Cell, n: int = 3) -> list[Disagreement]:
    """The first is wrong where the reference is right, then the reverse, then no label."""
    labels = ["7", "4", ""]
    return [
        Disagreement(
            name=f"digits/{c.decoder}-{i}.jpg", answer=str((4, 4, 9)[i % 3]), score=0.61,
            expected=str((7, 9, 3)[i % 3]), expected_score=0.58, label=labels[i % 3],
            thumbnail=thumbnail(40 * (i % 5)),
        )
        for i in range(n)
    ]  # fmt: skip


def parity(c: Cell, *, low: bool = False) -> Parity:
    """1,297 labelled images; ``low``: below the floor of the suite."""
    off = disagreements(c) if c.backend == "openvino" else []
    correct = 1201 if low else 1263
    return Parity(
        images=1304, relative_error=3e-6, top1_agreement=1 - len(off) / 1297, worst_slot=0,
        max_relative_error=1e-3, min_top1_agreement=0.99, passed=True, labelled=1297,
        correct=correct, reference_correct=1267, correct5=1290, reference_correct5=1291,
        min_accuracy=0.95, max_accuracy_drop=1.0, accurate=not low, disagreeing=len(off),
        disagreements=off,
    )  # fmt: skip


def check(c: Cell) -> PipelineCheck:
    off = list(DECODERS).index(c.decoder) if c.decoder in DECODERS else 1
    return PipelineCheck(
        decoder=c.decoder, images=256, max_difference=12.0 * off, mean_difference=0.3 * off,
        top1_agreement=1 - 0.004 * off, min_top1_agreement=0.9, passed=True, labelled=256,
        correct=249 - off, correct5=255,
    )  # fmt: skip


def record(c: Cell, repeat: int, rng: np.random.Generator, **changes: Any) -> Record:
    """An ok record, or one that ``changes`` make another."""
    level = math.log(true_ns(c)) + 0.01 * rng.standard_normal()
    durations = np.exp(level + 0.02 * rng.standard_normal(80)).astype(int).tolist()
    measured = Samples(
        replica=0, device="cpu:0,1", durations_ns=durations, end_ns=sum(durations),
        open_ns=80 * MS, first_inference_ns=35 * MS, stop_reason="time",
        stages_ns=stages(c) if c.boundary == "pipeline" else {},
    )  # fmt: skip
    path: dict[str, Any] = {"decoder": c.decoder, "zero_copy": c.backend != "openvino"}
    if c.scenario == "throughput":
        loader = {"kind": "threads", "skipped": SKIPPED, "depth": 3}
        path |= {"loader": loader, "loader_cores": 1, "session_cores": 1}
    else:
        path |= {"loader_cores": 2, "session_cores": 2, "unusable": 3}
    made = Record(
        cell=c, repeat=repeat, status="ok", replicas=[measured], parity=parity(c),
        pipeline=check(c) if c.boundary == "pipeline" else None,
        facts={"version": "1.2.3"} | ({"pipeline": path} if c.boundary == "pipeline" else {}),
        prepare_ns={"export": 900 * MS}, started="2026-01-02T03:04:05Z", wall_s=1.7,
    )  # fmt: skip
    return replace(made, **changes)


def run(found: list[Cell] | None = None, repeats: int = 3, seed: int = 0) -> RecordFile:
    """All cells ok."""
    found = cells() if found is None else found
    rng = np.random.default_rng(seed)
    records = [record(c, n, rng) for n in range(repeats) for c in found]
    return RecordFile("reports/x/records.jsonl", make.header(found), records)
