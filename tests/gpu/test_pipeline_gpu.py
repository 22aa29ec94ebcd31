"""Boundary pipeline on a CUDA device: pinned slots, overlapped copies, decoders on the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.run import driver, setup
from gpubench.run.watcher import Silent
from tests.backends import tiny

pytestmark = [
    pytest.mark.skipif(bool(tiny.no_cuda()), reason=tiny.no_cuda() or "-"),
    pytest.mark.slow,
]

SUITE = """
[workload]
model = "resnet18"
images = "photos"

[axes]
backend = ["torch-eager", "onnxruntime"]
device = "cuda"
batch_size = 8
boundary = "pipeline"
decoder = ["pil", "nvjpeg", "dali"]

[policy]
repeats = 1
max_repeats = 1
warmup_s = 0.1
duration_s = 0.5
parity_images = 16
"""


def test_the_whole_path_runs_on_the_gpu(tmp_path: Path, cache_dir: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE)
    session = setup.session(str(suite), {}, cache_dir, tmp_path / "run", False, ())
    file = driver.run(session, Silent())
    assert {r.cell.scenario for r in file.records} == {"latency", "throughput"}
    for record in file.records:
        if record.status == "unavailable":
            continue
        assert record.status == "ok", record.reason
        assert record.pipeline is not None
        assert record.pipeline.passed
        assert record.replicas[0].stages_ns["decode"] > 0
        if record.cell.decoder == "pil" and record.cell.scenario == "throughput":
            assert record.facts["pipeline"]["zero_copy"] is True


def test_transfers_overlap_and_the_gpus_own_time_is_beside_the_wall_time(
    tmp_path: Path, cache_dir: Path
) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE.replace('"pipeline"', '"transfer"').replace("decoder", "# decoder"))
    session = setup.session(str(suite), {}, cache_dir, tmp_path / "run", False, ())
    for record in driver.run(session, Silent()).records:
        assert record.status == "ok", record.reason  # answers as they were timed are checked, too
        own = record.facts["device_time_ns"]
        assert own["run"] > 0 < own["copy_in"]
        stages = record.replicas[0].stages_ns
        if record.cell.scenario == "throughput":
            assert record.facts["transfers"]["page_locked"] is True
            assert "convert" not in stages, "the device reads by itself"
        else:
            assert stages["convert"] > 0
