"""A stored deployment as an arm of an A/B."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpubench.analysis.compare.compare import compare
from gpubench.cache import Cache
from gpubench.errors import InputError, SuiteError
from gpubench.run import deploy as deploying
from gpubench.run import setup
from gpubench.run.ab import arms, driver
from gpubench.run.ab import setup as ab_setup
from gpubench.run.serving import manifest
from gpubench.run.watcher import Silent
from gpubench.suite.types import Rule
from tests.run.ab.test_driver import Watch


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, tiny_onnx: Path) -> Path:
    file = tmp_path_factory.mktemp("suite") / "tiny.toml"
    file.write_text(
        f'[workload]\nmodel = "{tiny_onnx}"\nimages = "synthetic"\n[axes]\n'
        'backend = ["onnxruntime"]\nbatch_size = [2]\nscenario = ["latency"]\n'
        'boundary = ["transfer"]\ndevice = "cpu"\ncores = 1\n'
        "[policy]\nwarmup_s = 0.01\nduration_s = 0.04\n"
    )
    return file


@pytest.fixture
def deployed(suite: Path, cache: Cache, tmp_path: Path, here: None) -> Path:
    chosen = {"backend": ["openvino"], "batch_size": [4]}
    session = setup.session(str(suite), chosen, cache.root)
    deploying.deploy(session, str(suite), tmp_path / "deployed", Silent())
    return tmp_path / "deployed"


@pytest.fixture
def job(cache: Cache, suite: Path, tmp_path: Path) -> Callable[[str], driver.ABJob]:
    def make(baseline: str) -> driver.ABJob:
        specs = arms.parse("--baseline", [baseline]), arms.parse("--candidate", [])
        return ab_setup.comparison(
            str(suite), {}, specs, (None, None), Rule(), 0.001, cache.root,
            tmp_path / "ab", False, (),
        )  # fmt: skip

    return make


def test_a_deployment_is_measured_as_it_lies_there(
    job: Callable[[str], driver.ABJob], deployed: Path
) -> None:
    files = driver.run(job(f"deployment={deployed}"), Watch())
    [before], [after] = (file.records for file in files)
    assert (before.cell.backend, before.cell.batch_size) == ("openvino", 4)
    assert (before.status, after.status) == ("ok", "ok")
    assert before.parity
    assert before.parity.passed
    assert before.contents["deployment"] == manifest.digest_of(manifest.read(deployed))
    assert before.prepare_ns == {}
    [row] = compare(*files)
    assert row.label == "openvino -> onnxruntime fp32 b4 -> b2 x1 latency transfer"
    assert files[0].header.pairing
    assert files[0].header.pairing.differs == f"deployment={deployed}"


def test_a_deployment_that_does_not_serve_is_refused(
    job: Callable[[str], driver.ABJob], deployed: Path, tiny_onnx: Path
) -> None:
    file = deployed / manifest.MANIFEST
    file.write_text(file.read_text().replace(str(tiny_onnx), "/nowhere/gone.onnx"))
    told = r"^--baseline deployment=.*gone.onnx.*no such file.*name that with model="
    with pytest.raises(SuiteError, match=told):
        job(f"deployment={deployed}")
    assert job(f"deployment={deployed},model={tiny_onnx}").sides[0].stored
    next((deployed / manifest.MODEL).iterdir()).write_bytes(b"x")
    with pytest.raises(InputError, match=r"^--baseline deployment=.*were written"):
        job(f"deployment={deployed}")
