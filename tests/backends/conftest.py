"""A tiny network that takes the place of torchvision's where a test asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.workload.models import builder
from tests.backends import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.Model:
    return tiny.Model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_module` gives `tiny.module`, whatever the state dict."""
    monkeypatch.setattr(builder, "load_module", lambda state: tiny.module())


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return tiny.write_onnx(tmp_path / "tiny.onnx")
