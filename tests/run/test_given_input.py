"""What the host gives, from a suite to a deployment, by real workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gpubench
from gpubench.cache import Cache
from gpubench.records import reader
from gpubench.report import render
from gpubench.run import deploy, driver, setup
from gpubench.run.watcher import Silent
from gpubench.workload import reference as ref

SUITE = """
[workload]
model = "digits"
[axes]
backend = ["torch-eager", "onnxruntime", "openvino"]
device = "cpu"
cores = 1
input = ["float32", "float16", "uint8"]
precision = ["fp32", "int8"]
batch_size = 4
scenario = "latency"
boundary = ["transfer", "pipeline"]
[[exclude]]
precision = "int8"
boundary = "pipeline"
[policy]
repeats = 1
warmup_iterations = 1
warmup_s = 0.01
duration_s = 0.02
block_s = 0.01
parity_images = 16
"""


@pytest.mark.slow
def test_bytes_go_all_the_way(tmp_path: Path, cache: Cache) -> None:
    suite = tmp_path / "given.toml"
    suite.write_text(SUITE)
    made = setup.session(str(suite), {}, cache.root, tmp_path / "run", False, ())
    driver.run(made, Silent())
    file = reader.read(tmp_path / "run")
    done = [r for r in file.records if r.status == "ok"]
    assert len(done) == 3 * (3 + 2 + 3)  # torch-eager has no int8
    wanted = 4 * 3 * 32 * 32
    for record in done:
        assert record.parity is not None
        assert record.parity.passed
        size = {"float32": 4, "float16": 2, "uint8": 1}[record.cell.input]
        assert record.facts["copied_in_bytes"] == size * wanted
        if record.cell.boundary == "pipeline":
            assert record.facts["pipeline"]["zero_copy"]
            assert record.pipeline is not None
            assert record.pipeline.max_difference <= 1e-3 + (record.cell.input == "float16")
    assert "float16 input" in render([file], "text")
    chosen = {"backend": ["onnxruntime"], "input": ["uint8"], "precision": ["fp32"],
              "boundary": ["transfer"]}  # fmt: skip
    out = tmp_path / "out"
    one = setup.session(str(suite), chosen, cache.root, out, False, ())
    assert deploy.deploy(one, str(suite), out, Silent()).preprocessing.dtype == "uint8"
    work = made.plan.suite
    right = ref.load(ref.build(work.workload, work.policy, cache, "uint8"))
    with gpubench.load(out) as classifier:
        found = classifier.logits(np.array(right.images[:6]))
        np.testing.assert_allclose(found, right.logits[:6], atol=1e-3)
        with pytest.raises(gpubench.errors.InputError, match="of uint8"):
            classifier.logits(np.zeros((1, 3, 32, 32), np.float32))
        pictures = [right.encoded(at) for at in range(6)]
        assert [p.index for p in classifier(pictures)] == [*found.argmax(1)]
