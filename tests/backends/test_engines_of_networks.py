"""The script that builds engines of many networks, on a tiny one and on one that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from gpubench.cache import Cache
from tests.backends.onnx_files import conv_net
from tests.benchmarks import engines


def test_what_is_built_and_what_is_refused(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="install gpubench[tensorrt-rtx]")
    cache, found = Cache(tmp_path / "cache"), {}
    for name, operator in (("good", "Relu"), ("bad", "Frobnicate")):
        file = conv_net(tmp_path / f"{name}.onnx", operator=operator)
        cell, captured = [*engines.cells(str(file))][1]
        assert captured
        found[name] = {
            "fp32, graph": engines.build(trt, replace(cell, weights="file"), captured, cache)
        }
    good, bad = (found[name]["fp32, graph"] for name in ("good", "bad"))
    assert (good["status"], good["flags"]) == ("ok", ["REQUIRE_USER_ALLOCATION"])
    assert bad["status"] != "ok"
    page = engines.page({"version": "1.7", "engines": found})
    assert "- bad, fp32, graph: " in page
    assert f"| good |  | {good['bytes'] / 2**20:.1f} |" in page
