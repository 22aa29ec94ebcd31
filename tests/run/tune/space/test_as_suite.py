"""Cells as suites: of a header, and of one cell."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubench.run.tune import space
from gpubench.suite import file, grid
from gpubench.suite.types import Catalog, Cell, Policy, Preprocess
from tests.run.tune.space.made import CATALOG, RESNET, anything, make, supported


def reread(tmp_path: Path, cell: Cell, policy: Policy, catalog: Catalog) -> tuple[Cell, Policy]:
    path = tmp_path / "best.toml"
    path.write_text(space.to_toml(cell, policy, "best", "what it is"), encoding="utf-8")
    suite = file.load(str(path), catalog)
    assert suite.description == "what it is"
    (found,) = grid.expand(suite, cell.device, 7)
    return found, suite.policy


@pytest.mark.parametrize(("device", "cores", "gpus"), [("cpu", 6, 0), ("cuda", 16, 4)])
@pytest.mark.parametrize("boundary", ["transfer", "pipeline"])
def test_every_kind_of_cell_comes_back_from_its_file(
    tmp_path: Path, installed: Catalog, device: str, cores: int, gpus: int, boundary: str
) -> None:
    found = make(
        installed, device=device, cores=cores, gpus=gpus, boundary=boundary, decoder="turbo"
    )
    cells = space.cells(found, installed, supported)
    for cell in cells[:: max(1, len(cells) // 12)]:
        again, _ = reread(tmp_path, cell, Policy(), installed)
        assert again == cell
        assert again.key == cell.key


def test_odd_paths_and_all_fields_come_back(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" \\ ü\t\x7f\u200b 🖼 #='
    folder.mkdir()
    for name in ("net.onnx", "labels.csv"):
        (folder / name).touch()
    cell = Cell(
        backend="tiled",
        device="cpu",
        model=str(folder / "net.onnx"),
        weights="file",
        images=str(folder),
        labels=str(folder / "labels.csv"),
        preprocess=Preprocess(size=(9,), crop=False, mean=(0.5, 1e-5, 3.0), layout="NHWC"),
        calibration=str(folder),
        precision="int8",
        batch_size=3,
        replicas=4,
        cores=2,
        replicas_per_device=2,
        scenario="throughput",
        boundary="pipeline",
        loader="threads",
        loader_cores=1,
        options={"tile": 16, "fuse": False, "depth": 1e-9, "free": 'it\'s "x"\n\U000e0001'},
    )
    policy = Policy(repeats=5, max_repeats=9, duration_s=0.5, min_accuracy=0.9, accuracy_images=50)
    assert reread(tmp_path, cell, policy, CATALOG) == (cell, policy)
    text = (tmp_path / "best.toml").read_text(encoding="utf-8")
    assert "\u200b" not in text
    assert "\x7f" not in text


@settings(max_examples=25, deadline=None)
@given(
    free=st.text(st.characters(codec="utf-8"), max_size=20),
    depth=st.floats(-1e9, 1e9),
    repeats=st.integers(1, 9),
    more=st.integers(0, 3),
)
def test_any_value_of_an_option_comes_back(
    tmp_path_factory: pytest.TempPathFactory, free: str, depth: float, repeats: int, more: int
) -> None:
    plain = space.cells(make(), CATALOG, anything)[0]
    cell = msgspec.structs.replace(plain, options={"free": free, "depth": depth})
    policy = Policy(repeats=repeats, max_repeats=repeats + more)
    folder = tmp_path_factory.getbasetemp()
    assert reread(folder, cell, policy, CATALOG) == (cell, policy)


def test_the_suite_of_a_search_holds_the_values_of_its_cells() -> None:
    cells = space.cells(make(cores=4), CATALOG, anything)
    suite = space.suite("tune", cells, Policy(), "torch-eager", "a search")
    axes = suite.axes
    assert (suite.name, suite.description, suite.baseline) == ("tune", "a search", "torch-eager")
    assert suite.workload == RESNET
    assert axes.backend == ("tiled", "torch-eager")
    assert axes.batch_size == (1, 2, 4, 8, 16, 32)
    assert (axes.replicas, axes.cores, axes.device) == ((1, 2, 4), 0, "cpu")
    assert axes.scenario == ("throughput",)
    assert axes.options == {
        "tiled": {"depth": (2.0,), "fuse": (False,), "tile": (16,), "method": ("b",)}
    }
    assert space.suite("t", cells[:1], Policy(), "tiled", "").axes.cores == 4
