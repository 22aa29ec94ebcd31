"""What is deployed for a CUDA device, loaded in this process and in replicas' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gpubench
from gpubench.cache import Cache
from gpubench.run import deploy as deploying
from gpubench.run import setup
from gpubench.run.watcher import Silent
from gpubench.workload import reference as ref
from tests.backends import tiny

pytestmark = [
    pytest.mark.skipif(bool(tiny.no_cuda()), reason=tiny.no_cuda() or "-"),
    pytest.mark.slow,
]

SUITE = """
[workload]
model = "digits"

[axes]
backend = ["{backend}"]
device = "cuda"
precision = ["{precision}"]
batch_size = [4]
replicas = [{replicas}]
replicas_per_device = [{replicas}]
scenario = ["latency"]
boundary = ["transfer"]

[policy]
parity_images = 16
"""


@pytest.mark.parametrize(
    ("backend", "precision", "replicas"),
    [
        ("torch-eager", "fp16", 1),
        ("torch-eager", "fp16", 2),
        ("torch-compile", "fp16", 1),
        ("onnxruntime", "fp16", 1),
        ("tensorrt", "fp16", 1),
        ("tensorrt", "fp16", 2),
    ],
)
def test_a_deployment_answers_as_the_reference(
    tmp_path: Path, cache_dir: Path, backend: str, precision: str, replicas: int
) -> None:
    suite, out = tmp_path / "suite.toml", tmp_path / "out"
    suite.write_text(SUITE.format(backend=backend, precision=precision, replicas=replicas))
    session = setup.session(str(suite), {}, cache_dir, out, False, ())
    for skip in session.plan.skips:
        pytest.skip(skip.reason)
    made = deploying.deploy(session, str(suite), out, Silent())
    assert made.made_for.gpu
    assert made.cores == []
    out = out.rename(tmp_path / "moved")
    workload, policy = session.plan.suite.workload, session.plan.suite.policy
    reference = ref.load(ref.build(workload, policy, Cache(cache_dir)))
    images, right = np.array(reference.images[:15]), reference.logits[:15]
    with gpubench.load(out) as classifier:
        assert len(classifier.facts) == replicas
        assert np.abs(classifier.logits(images) - right).max() < 0.1 * np.abs(right).max()
        answers = classifier([reference.encoded(at) for at in range(15)])
        assert sum(a.index == r for a, r in zip(answers, right.argmax(1), strict=True)) >= 14
