"""The product on a CUDA device: a suite, an agent, fresh workers, telemetry, records."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.machine.gpu import visible_gpus
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
weights = "random"
images = "synthetic"

[axes]
backend = "torch-eager"
device = "cuda"
batch_size = 4
boundary = ["compute", "transfer"]

[policy]
repeats = 1
max_repeats = 1
warmup_s = 0.1
duration_s = 0.5
parity_images = 8
"""


def test_a_suite_runs_on_the_gpu(tmp_path: Path, cache_dir: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE)
    session = setup.session(str(suite), {}, cache_dir, tmp_path / "run", False, ())
    file = driver.run(session, Silent())
    assert {record.cell.boundary for record in file.records} == {"compute", "transfer"}
    for record in file.records:
        assert record.status == "ok", record.reason
        assert record.parity is not None
        assert record.parity.passed
        assert record.facts["device"] == visible_gpus()[0].name
        assert record.facts["cuda"]
        assert [samples.device for samples in record.replicas] == ["cuda:0"]
        assert "gpu_error" not in record.telemetry
        [gpu] = record.telemetry["gpus"]
        assert gpu["sm_mhz"]["median"] > 0
        energy = record.telemetry["energy"]
        assert energy["source"] in ("nvml", "nvml-power")
        assert 10 < energy["joules"] / energy["seconds"] < 2000
        assert energy["idle_watts"] > 0
        assert record.joules_per_image() is None, "half a second is too short"
        assert gpu["own_memory_bytes_peak"] > 1 << 20
        assert record.peak_bytes() > gpu["own_memory_bytes_peak"]
        assert "CO-TENANT" not in record.flags
