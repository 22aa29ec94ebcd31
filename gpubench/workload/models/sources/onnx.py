"""ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpubench import plugins
from gpubench.workload.models.onnx_model import OnnxModel
from gpubench.workload.models.registry import Look, Source

if TYPE_CHECKING:
    from gpubench.cache import Cache
    from gpubench.suite.types import Workload


class Onnx(Source):
    name = "onnx"
    summary = "FILE.onnx: a classifier, with its weights"

    def probe(self) -> dict[str, str]:
        return plugins.installed("onnx")

    def look(self, workload: Workload) -> Look:
        return _model(workload, None).look()

    def model(self, workload: Workload, cache: Cache) -> OnnxModel:
        return _model(workload, cache)


def _model(workload: Workload, cache: Cache | None) -> OnnxModel:
    file = Path(workload.model).expanduser()
    return OnnxModel(file, cache, workload.preprocess, workload.output)
