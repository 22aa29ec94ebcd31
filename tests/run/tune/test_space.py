"""Placements; cells, each canonical and once; today's default; cells as suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubench.errors import SuiteError
from gpubench.run import availability
from gpubench.run.tune import space
from gpubench.run.tune.space import Placement
from gpubench.suite import file, goal, grid
from gpubench.suite.goal import Goal, Metric
from gpubench.suite.types import Catalog, Cell, Policy, Preprocess, Workload
from tests.run.tune.spaces import (
    CATALOG,
    FAST,
    OPTIONS,
    QUICK,
    RESNET,
    anything,
    make,
    supported,
)


@pytest.fixture(scope="session")
def installed() -> Catalog:
    return availability.catalog()


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1)]),
        (3, [(1, 3), (3, 1)]),
        (4, [(1, 4), (2, 2), (4, 1), (1, 2)]),
        (6, [(1, 6), (2, 3), (6, 1), (1, 3)]),
        (64, [(1, 64), (2, 32), (4, 16), (8, 8), (16, 4), (32, 2), (64, 1), (1, 32)]),
    ],
)
def test_cores_are_shared_out(cores: int, expected: list[tuple[int, int]]) -> None:
    found = make(cores=cores)
    assert [(p.replicas, p.cores) for p in found.placements] == expected
    assert found.batch_sizes == (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("gpus", "objective", "expected"),
    [
        (1, FAST, [(1, 1), (2, 2)]),
        (4, FAST, [(4, 1), (8, 2)]),
        (1, QUICK, [(1, 1), (2, 2)]),
        (4, QUICK, [(1, 1), (4, 1), (8, 2)]),
    ],
)
def test_gpus_hold_one_replica_or_two(
    gpus: int, objective: Goal, expected: list[tuple[int, int]]
) -> None:
    found = make(device="cuda", cores=16, gpus=gpus, goal=objective)
    assert [(p.replicas, p.replicas_per_device) for p in found.placements] == expected
    assert found.batch_sizes[-1] == 128
    cells = space.cells(found, CATALOG, anything)
    assert {cell.cores for cell in cells} == {0}
    assert all(cell.devices <= gpus for cell in cells)


def test_scenario_follows_the_goal() -> None:
    limited = Goal(Metric("throughput"), (goal.max_latency("", "p99=20ms"),))
    assert [make(goal=g).scenario for g in (FAST, limited)] == ["throughput", "latency"]


def test_what_means_the_same_is_one_cell() -> None:
    narrow = {"backend": ["tiled"], "batch_size": [1], "replicas": [1], "input": ["float32"]}
    found = space.chosen(make(), narrow)
    cells = space.cells(found, CATALOG, anything)
    fp32 = [cell.options for cell in cells if cell.precision == "fp32"]
    assert fp32 == [
        {},
        {"depth": 2.0},
        {"fuse": False},  # and no depth, which has no effect without
        {"tile": 16},
        {"tile": 16, "depth": 2.0},
        {"tile": 16, "fuse": False},
    ]
    int8 = [cell.options for cell in cells if cell.precision == "int8"]
    assert len(int8) == 2 * len(fp32)
    assert {"fuse": False, "method": "b"} in int8
    assert len({cell.key for cell in cells}) == len(cells)


def test_a_cell_has_the_key_that_it_would_have_in_a_suite(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[workload]\nmodel = "resnet50"\n[axes]\nbackend = "tiled"\nbatch_size = 4\n'
        'precision = "int8"\nscenario = "throughput"\nboundary = "transfer"\n'
        '[axes.options.tiled]\ndepth = 2\nmethod = "b"\n'
    )
    (cell,) = grid.expand(file.load(str(path), CATALOG), "cpu", 2)
    assert cell.key in {c.key for c in space.cells(make(), CATALOG, anything)}


def test_the_order_is_fixed_and_null_left_out() -> None:
    twice = [space.cells(make(), CATALOG, anything) for _ in range(2)]
    assert twice[0] == twice[1]
    assert [*dict.fromkeys(cell.backend for cell in twice[0])] == ["tiled", "torch-eager"]


@pytest.mark.parametrize("boundary", ["compute", "transfer", "pipeline"])
@pytest.mark.parametrize("objective", [FAST, QUICK])
@pytest.mark.parametrize(("device", "cores", "gpus"), [("cpu", 4, 0), ("cuda", 16, 2)])
def test_the_default_space_of_what_is_installed(
    installed: Catalog, device: str, cores: int, gpus: int, objective: Goal, boundary: str
) -> None:
    found = make(
        installed, device=device, cores=cores, gpus=gpus, goal=objective, boundary=boundary
    )
    cells = space.cells(found, installed, supported)
    assert len(cells) >= 60
    assert not [reason for cell in cells if (reason := supported(cell))]
    assert "null" not in {cell.backend for cell in cells}
    for cell in cells[:: len(cells) // 20]:
        point = space.coordinates(cell, installed.backends[cell.backend])
        named = {f"{cell.backend}.{key}": value for key, value in cell.options.items()}
        assert point.items() >= named.items()
    wanted = space.baseline({}, found, installed)
    assert [cell.batch_size for cell in wanted] == list(found.batch_sizes)
    assert {cell.key for cell in wanted} <= {cell.key for cell in cells}


def test_streams_of_openvino_are_tried_where_batches_overlap(installed: Catalog) -> None:
    def tried(boundary: str) -> set[str]:
        found = make(installed, boundary=boundary)
        cells = space.cells(found, installed, supported)
        return {name for c in cells if c.backend == "openvino" for name in c.options}

    for boundary in ("compute", "transfer", "pipeline"):
        assert tried(boundary) >= {"hint", "num_streams"}


def test_the_backend_of_a_third_party_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_backend.py").write_text(
        "from gpubench.suite import Option\n"
        "class Theirs:\n"
        "    name, summary, preload = 'theirs', 'theirs', ()\n"
        "    options = (Option(name='tile', kind='int', default=1, help='', search=(1, 2)),)\n"
        "    def unsupported(self, cell):\n"
        "        return None if cell.precision == 'fp16' else 'only fp16'\n"
    )
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[gpubench.backends]\ntheirs = their_backend:Theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    catalog = availability.catalog()
    narrow = {"batch_size": [8], "replicas": [1], "input": ["float32"]}
    found = space.chosen(make(catalog), narrow)
    theirs = [c for c in space.cells(found, catalog, supported) if c.backend == "theirs"]
    assert [(c.precision, c.options) for c in theirs] == [("fp16", {}), ("fp16", {"tile": 2})]


def test_what_the_host_gives_is_searched_where_it_is_timed() -> None:
    for boundary, tried in (("compute", {"float32"}), ("transfer", {"float32", "uint8"})):
        cells = space.cells(make(boundary=boundary), CATALOG, anything)
        assert {cell.input for cell in cells} == tried
    asked = space.chosen(make(), {"input": ["float16"], "batch_size": [1], "backend": ["null"]})
    assert {cell.input for cell in space.cells(asked, CATALOG, anything)} == {"float16"}
    with pytest.raises(SuiteError, match='--input = "int8": unknown; did you mean "uint8"'):
        space.chosen(make(), {"input": ["int8"]})


def test_nothing_left(installed: Catalog) -> None:
    with pytest.raises(SuiteError, match=r"no configuration .* can run here: tiled: broken"):
        space.cells(make(), CATALOG, lambda _: "broken")


def test_too_many() -> None:
    wide = msgspec.structs.replace(make(), batch_sizes=tuple(range(1, 3001)))
    with pytest.raises(SuiteError, match=r"more than 30,000 .* longest: batch_size \(3,000\)"):
        space.cells(wide, CATALOG, anything)
    deep = make()
    deep.options["tiled"]["tile"] = tuple(range(1, 30_002))
    with pytest.raises(SuiteError, match=r"--backend.* longest: options\.tiled \("):
        space.cells(deep, CATALOG, anything)


def test_coordinates_have_every_option_with_an_effect() -> None:
    cells = space.cells(make(), CATALOG, anything)
    cell = next(c for c in cells if c.options == {"fuse": False, "method": "b"})
    assert space.coordinates(cell, OPTIONS) == {
        "backend": "tiled",
        "precision": "int8",
        "input": "float32",
        "batch_size": 1,
        "placement": "1x2x1",
        "tiled.tile": 8,
        "tiled.fuse": False,
        "tiled.method": "b",
        "tiled.free": "",
    }


@pytest.mark.parametrize(("cores", "gpus"), [(128, 0), (128, 8)])
def test_no_machine_has_too_many_of_what_is_shipped(
    cores: int, gpus: int, installed: Catalog
) -> None:
    device = "cuda" if gpus else "cpu"
    found = make(installed, device=device, cores=cores, gpus=gpus, goal=QUICK)
    assert len(space.cells(found, installed, supported)) > 1000


def test_values_of_options_can_be_named_and_are_checked() -> None:
    found = space.trying(make(), CATALOG, ["free=-conv=off", "tile=32", "tile=16"])
    assert found.options["tiled"]["free"] == ("", "-conv=off")
    assert found.options["tiled"]["tile"] == (8, 16, 32)
    cells = space.cells(found, CATALOG, anything)
    assert {c.options.get("free") for c in cells if c.backend == "tiled"} == {None, "-conv=off"}
    for text, words in [
        ("tile", "expected NAME=VALUE"),
        ("tiel=3", 'did you mean "tile"'),
        ("tile=0", r"--option tile = 0: expected .* 1"),
        ("tile=wide", "--option tile = "),
    ]:
        with pytest.raises(SuiteError, match=words):
            space.trying(make(), CATALOG, [text])


# ---------------------------------------------------------- what the command line says


def test_chosen_narrows_and_widens() -> None:
    found = space.chosen(
        make(cores=8),
        {
            "backend": ["null"],
            "precision": ["bf16", "bf16"],
            "input": ["float32"],
            "batch_size": [3],
            "replicas": [1, 3],
            "device": None,
        },
    )
    cells = space.cells(found, CATALOG, anything)
    assert {(c.backend, c.precision, c.batch_size) for c in cells} == {("null", "bf16", 3)}
    assert [(c.replicas, c.cores) for c in cells] == [(1, 8), (1, 4), (3, 2)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"backend": ["tile"]}, '--backend = "tile": unknown; did you mean "tiled"?'),
        ({"precision": ["fp23"]}, '--precision = "fp23": unknown'),
        ({"batch_size": [0]}, "--batch-size = 0: expected a whole number, at least 1"),
        ({"batch_size": []}, "--batch-size: empty"),
        ({"replicas": [3]}, "--replicas 3: needs 3 cores; usable: 2"),
    ],
)
def test_chosen_refuses(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(SuiteError) as caught:
        space.chosen(make(), overrides)
    assert words in str(caught.value)


def test_chosen_on_gpus() -> None:
    found = space.chosen(make(device="cuda", gpus=2), {"replicas": [3, 6]})
    assert found.placements == (Placement(3, 0, 2), Placement(6, 0, 3))
    lonely = make(device="cuda", gpus=0)
    with pytest.raises(SuiteError, match=r"--replicas 1: needs 1 GPUs; visible: 0"):
        space.chosen(lonely, {"replicas": [1]})


# ---------------------------------------------------------- today's default


def test_the_baseline_does_not_depend_on_what_is_searched() -> None:
    found = space.chosen(
        make(), {"backend": ["tiled"], "precision": ["int8"], "batch_size": [1, 8]}
    )
    cells = space.baseline({}, found, CATALOG)
    assert [(c.backend, c.precision, c.batch_size, c.replicas, c.cores) for c in cells] == [
        ("torch-eager", "fp32", 1, 1, 2),
        ("torch-eager", "fp32", 8, 1, 2),
    ]
    assert {c.key for c in cells} <= {c.key for c in space.cells(make(), CATALOG, anything)}


def test_of_an_onnx_file_it_is_onnxruntime(installed: Catalog) -> None:
    found = msgspec.structs.replace(
        make(installed), workload=Workload(model="/a.onnx", weights="file")
    )
    assert {c.backend for c in space.baseline({}, found, installed)} == {"onnxruntime"}


def test_the_baseline_may_be_another() -> None:
    words = {"backend": "tiled", "precision": "int8", "batch_size": "4", "replicas": "2"}
    words |= {"tile": "8", "fuse": "true", "depth": "2", "method": "b"}
    (cell,) = space.baseline(words, make(cores=8), CATALOG)
    assert (cell.replicas, cell.cores, cell.batch_size) == (2, 4, 4)
    assert cell.options == {"depth": 2.0, "method": "b"}
    words = {"replicas": "4", "replicas_per_device": "2", "cores": "3"}
    shared = space.baseline(words, make(cores=8), CATALOG)
    assert {(c.replicas, c.replicas_per_device, c.cores) for c in shared} == {(4, 2, 3)}
    on_gpus = make(device="cuda", gpus=4)
    assert {c.replicas for c in space.baseline({}, on_gpus, CATALOG)} == {4}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"backend": "torch"}, '--baseline backend=torch: did you mean "torch-eager"?'),
        (
            {"precison": "fp32"},
            '--baseline precison=fp32: there is no such key; did you mean "prec',
        ),
        ({"tile": "8"}, "--baseline tile=8: there is no such key"),
        ({"backend": "tiled", "tile": "x"}, "--baseline tile=x: expected a whole number"),
        ({"backend": "tiled", "fuse": "1"}, "--baseline fuse=1: expected true or false"),
        ({"backend": "tiled", "method": "c"}, "--baseline method=c: unknown"),
        (
            {"backend": "tiled", "method": "b"},
            '--baseline method=b: no effect here, only where precision is "int8"',
        ),
        ({"precision": "fp9"}, "--baseline precision=fp9: unknown"),
        ({"replicas": "3"}, "--baseline replicas=3: needs 3 cores; usable: 2"),
        ({"cores": "3"}, "--baseline cores=3: needs 3 cores; usable: 2"),
        ({"batch_size": "0"}, "--baseline batch_size=0: expected a whole number"),
    ],
)
def test_a_baseline_that_cannot_be(words: dict[str, str], message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        space.baseline(words, make(), CATALOG)
    assert str(caught.value).startswith(message)


# ---------------------------------------------------------- as suites


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
