"""The notebooks of the documentation run, and are kept without what they gave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks_and_none_keeps_its_outputs() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["is-it-slower", "own-model", "scaling"]
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        kept = [(c["outputs"], c["execution_count"]) for c in cells if c["cell_type"] == "code"]
        assert {repr(each) for each in kept} == {repr(([], None))}, path.name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_of_the_documentation_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of its own, on a kernel; every cell that ends with a value shows it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(tmp_path / "cache")))
    book: Any = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=resources).execute()
    shown = [out["data"] for cell in book.cells for out in cell.get("outputs", ())
             if out["output_type"] == "execute_result"]  # fmt: skip
    assert any("<table" in data.get("text/html", "") for data in shown)
    assert list((tmp_path / "reports").rglob("records.jsonl"))
