"""The tiny network takes the place of torchvision's."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.workload import networks
from gpubench.workload.cache import Cache
from tests.backends import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.Model:
    return tiny.Model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "load_module", lambda state: tiny.module())


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return tiny.write_onnx(tmp_path / "tiny.onnx")
