"""Deployments of the network `digits`, made once for the session, without processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubench.cache import Cache
from gpubench.records.record import merged
from gpubench.run import deploy as deploying
from gpubench.run import setup
from gpubench.run.agent import worker
from gpubench.run.agent.messages import Done, Go, Measure, Preloaded, Request
from gpubench.run.serving import compatibility
from gpubench.run.watcher import Silent
from gpubench.workload import reference as ref

Deployed = Callable[..., Path]


class Here:
    """An agent that is this very process: no time goes into starting one and importing torch."""

    def __init__(self, modules: list[str], cache_dir: Path, log: Path) -> None:
        self._cache_dir = str(cache_dir)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self) -> Preloaded:
        return Preloaded({}, 0.0)

    def ask(self, request: Request, progress: object = None) -> Any:
        def barrier(name: str, *_: float) -> Go:
            return Go(time.perf_counter_ns())

        cores = os.sched_getaffinity(0)
        try:
            if not isinstance(request, Measure):
                return worker._answer(request, self._cache_dir, 0, barrier, None)
            found = [
                worker._answer(request, self._cache_dir, replica, barrier, None)
                for replica in range(len(request.cores))
            ]
        except Exception as error:  # noqa: BLE001
            return worker.failure(error)
        finally:
            os.sched_setaffinity(0, cores)
        return Done(merged([one.record for one in found if isinstance(one, Done)]))


@pytest.fixture(autouse=True)
def _claims_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other sessions of tests on this machine load classifiers too."""
    monkeypatch.setattr(compatibility, "CLAIM", f"gpubench-test-{os.getpid()}")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gpubench deploy` without an agent."""
    monkeypatch.setattr(deploying, "AgentClient", Here)


@pytest.fixture(scope="session")
def digits_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "digits.toml"
    path.write_text(
        '[workload]\nmodel = "digits"\n[axes]\nbackend = ["onnxruntime"]\nbatch_size = [4]\n'
        'scenario = ["latency"]\nboundary = ["transfer"]\ndevice = "cpu"\ncores = 1\n'
        "[policy]\nparity_images = 16\n"
    )
    return path


@pytest.fixture(scope="session")
def deploy(tmp_path_factory: pytest.TempPathFactory, cache: Cache, digits_suite: Path) -> Deployed:
    """deploy(backend=["openvino"], ...) -> the folder; each is made once."""
    made: dict[str, Path] = {}

    def make(**chosen: Any) -> Path:
        key = repr(sorted(chosen.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("deployed") / "out"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(deploying, "AgentClient", Here)
                session = setup.session(str(digits_suite), chosen, cache.root, out, False, ())
                deploying.deploy(session, str(digits_suite), out, Silent())
            made[key] = out
        return made[key]

    return make


@pytest.fixture(scope="session")
def reference(cache: Cache, digits_suite: Path) -> ref.Reference:
    suite = setup.load(str(digits_suite), {})
    return ref.load(ref.build(suite.workload, suite.policy, cache))


@pytest.fixture
def inputs(reference: ref.Reference) -> np.ndarray[Any, Any]:
    return np.array(reference.images[:13])
