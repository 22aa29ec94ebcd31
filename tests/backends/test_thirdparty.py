"""A stranger's backend: installed for real, found by its entry point, opened, asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.backends import contract, tiny

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "data" / "thirdparty_backend"

_USE = """
import json, sys
from pathlib import Path
from gpubench.backends import base
from tests.backends import tiny
backend = base.get("onnx-reference")
cell = tiny.cell("onnx-reference", batch_size=2)
assert backend.unsupported(cell) is None, backend.unsupported(cell)
facts = backend.probe()
artefact = backend.prepare(cell, tiny.Model(Path(sys.argv[1])), None)
with backend.open(cell, artefact, base.Device("cpu", 0, (0,))) as session:
    session.copy_in(tiny.images(2)); session.run(); session.sync()
    logits = session.copy_out()
print(json.dumps({"names": base.names(), "facts": facts, "logits": logits.tolist()}))
"""


def _install(target: Path, source: Path) -> None:
    """Build and install into ``target`` without a network; skip where no installer can."""
    common = ["--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    uv = shutil.which("uv")
    installers = [
        [uv, "pip", "install", "--offline", "--python", sys.executable, *common] if uv else [],
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", *common],
    ]
    errors = []
    for command in filter(None, installers):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode == 0:
            return
        errors.append(done.stderr.strip()[-300:])
    pytest.skip(f"needs uv or pip, and setuptools, to install a package offline: {errors}")


def test_an_installed_package_brings_a_backend(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(SOURCE, source)  # building leaves files beside the sources
    _install(target, source)
    done = subprocess.run(
        [sys.executable, "-c", _USE, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{target}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"onnx-reference", "torch-eager"} <= set(result["names"])
    assert result["facts"]["onnx"]
    logits = np.asarray(result["logits"], np.float32)
    assert contract.same(logits, tiny.reference(tiny.images(2)), 1e-4)


def test_the_example_fits_one_screen() -> None:
    text = (SOURCE / "gpubench_onnx_reference.py").read_text()
    assert len(text.splitlines()) <= 60
    assert max(map(len, text.splitlines())) <= 100
