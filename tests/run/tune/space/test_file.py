"""``--space FILE``: what it may say, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpubench.errors import SuiteError
from gpubench.run import availability
from gpubench.run.tune import space
from gpubench.run.tune.space import Placement, Space
from gpubench.run.tune.space.file import schema
from gpubench.suite import file
from gpubench.suite.types import Cell
from tests.run.tune.space.made import CATALOG, anything, make, supported


def read(tmp_path: Path, text: str, **given: Any) -> Space:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return space.read(path, make(**given), CATALOG)


def cells(found: Space) -> list[Cell]:
    return space.cells(found, CATALOG, anything)


# ------------------------------------------------------------------------------ what it may say


def test_what_is_not_named_stays(tmp_path: Path) -> None:
    assert read(tmp_path, "") == make()
    found = read(tmp_path, 'description = "mine"\n[axes]\nbatch_size = 64\n')
    assert found.batch_sizes == (64,)
    assert (found.backends, found.options) == (make().backends, make().options)


def test_every_axis_may_be_restricted_or_extended(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        [axes]
        backend = ["tiled", "null"]
        precision = ["int8", "fp32"]
        batch_size = [6, 1]
        placement = [{ replicas = 2 }, { replicas = 3, cores = 2, replicas_per_device = 2 }]
        [axes.options.tiled]
        tile = [8, 12]      # 12 is none that the backend declares
        depth = 3           # one value: no axis, and not the default
        free = ["", "x"]    # the backend leaves it alone
        """,
        cores=4,
    )
    assert found.backends == ("tiled", "null")
    assert found.precisions == ("int8", "fp32")
    assert found.batch_sizes == (6, 1)
    assert found.placements == (Placement(2, 2), Placement(3, 2, 2))
    assert found.options["tiled"] == make().options["tiled"] | {
        "tile": (8, 12),
        "depth": (3.0,),
        "free": ("", "x"),
    }
    ours = [c.options for c in cells(found) if c.backend == "tiled" and c.precision == "fp32"]
    assert {"depth": 3.0} in ours
    assert {"tile": 12, "fuse": False, "free": "x"} in ours
    assert {} not in ours
    assert {c.backend for c in cells(found)} == {"tiled", "null"}


def test_replicas_alone_share_out_the_cores(tmp_path: Path) -> None:
    found = read(tmp_path, "[axes]\nreplicas = [1, 3]\n", cores=8)
    assert found.placements == (Placement(1, 8), Placement(1, 4), Placement(3, 2))
    found = read(tmp_path, "[axes]\nreplicas = [6]\n", device="cuda", gpus=2)
    assert found.placements == (Placement(6, 0, 3),)
    found = read(tmp_path, "[axes]\nplacement = { replicas = 2 }\n", device="cuda", gpus=2)
    assert found.placements == (Placement(2, 0),)


def test_rules_drop_cells_as_in_a_suite(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        [[exclude]]
        backend = "tiled"
        precision = ["fp16", "bf16"]
        [[exclude]]
        fuse = true         # the default, which cells do not name
        batch_size = [1, 2]
        [[exclude]]
        method = "a"        # the default; it has an effect with int8 only
        [[exclude]]
        cores = 1
        """,
    )
    left = [c for c in cells(found) if c.backend == "tiled"]
    assert {c.precision for c in left} == {"fp32", "tf32", "amp", "int8"}
    assert all(c.options.get("fuse") is False for c in left if c.batch_size in (1, 2))
    assert all(c.options["method"] == "b" for c in left if c.precision == "int8")
    assert {c.replicas for c in left} == {1}
    assert {c.precision for c in cells(found)} > {"fp16"}  # torch-eager's


def test_the_command_line_narrows_further(tmp_path: Path) -> None:
    found = read(tmp_path, '[axes]\nprecision = ["int8", "fp32"]\nbatch_size = 4\n')
    found = space.chosen(found, {"backend": ["tiled"], "precision": ["fp32"]})
    assert {(c.backend, c.precision, c.batch_size) for c in cells(found)} == {("tiled", "fp32", 4)}


def test_a_value_for_another_device_does_no_harm(tmp_path: Path) -> None:
    text = "[axes.options.tiled]\ngraph = true\n"
    assert cells(read(tmp_path, text)) == cells(make())
    on_gpu = cells(read(tmp_path, text, device="cuda", gpus=1))
    assert {c.options.get("graph") for c in on_gpu if c.backend == "tiled"} == {True}


def test_of_what_is_installed(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[axes]\nbackend = ["openvino", "onnxruntime"]\nprecision = ["fp32", "int8"]\n'
        'batch_size = 8\ninput = "float32"\n[axes.options.openvino]\ncalibration = "percentile"\n'
        "calibration_images = [128, 512]\n"
    )
    catalog = availability.catalog()
    found = space.read(path, make(catalog), catalog)
    ours = [c for c in space.cells(found, catalog, supported) if c.backend == "openvino"]
    assert [c.options for c in ours if c.replicas == 1] == [
        {},
        {"calibration": "percentile"},
        {"calibration": "percentile", "calibration_images": 512},
    ]


def test_an_editor_takes_them(tmp_path: Path) -> None:
    rules = schema(CATALOG)
    jsonschema.Draft7Validator.check_schema(rules)
    good = {"axes": {"placement": [{"replicas": 2, "cores": 1}]}, "exclude": [{"cores": 1}]}
    assert jsonschema.Draft7Validator(rules).is_valid(good)
    assert not jsonschema.Draft7Validator(rules).is_valid({"axes": {"placement": [{"cores": 1}]}})


# ------------------------------------------------------------------------------ what is wrong


def axes(text: str) -> str:
    return f"[axes]\n{text}\n"


def tiled(text: str) -> str:
    return f"[axes.options.tiled]\n{text}\n"


WRONG: list[tuple[str, ...]] = [
    ("[axis]", "axis: unknown key; did you mean \"axes\"?"),
    (axes("batch = 1"), "axes.batch: unknown key; did you mean \"batch_size\"?"),
    (axes("scenario = 'latency'"), "axes.scenario: unknown key"),
    ("[policy]\nrepeats = 3", "policy: unknown key"),
    (axes("backend = 'tile'"), 'axes.backend = "tile": unknown; did you mean "tiled"?'),
    (axes("backend = []"), "axes.backend = []: empty"),
    (axes("backend = ['tiled', 'tiled']"), 'axes.backend[1] = "tiled": given twice'),
    (axes("precision = ['fp32', 'fp23']"), 'axes.precision[1] = "fp23": unknown'),
    (axes("batch_size = 0"), "axes.batch_size = 0: expected a whole number, at least 1"),
    (axes("batch_size = '8'"), 'axes.batch_size = "8": expected a whole number'),
    (axes("replicas = true"), "axes.replicas = true: expected a whole number"),
    (axes("replicas = [1, 3]"), "axes.replicas[1]: needs 3 cores; usable: 2"),
    (axes("placement = 2"), "axes.placement = 2: expected a table"),
    (axes("placement = []"), "axes.placement = []: empty"),
    (axes("placement = {cores = 1}"), "axes.placement.replicas: missing"),
    (axes("placement = [{replicas = 1, core = 1}]"), "placement[0].core: unknown key", "cores"),
    (axes("placement = [{replicas = 1, cores = 0}]"), "axes.placement[0].cores = 0: expected"),
    (axes("placement = [{replicas = 2, cores = 2}]"), "axes.placement[0] = ", "needs 4 cores"),
    (axes("placement = [{replicas = 1}, {replicas = 1, cores = 2}]"), "[1] = ", "given twice"),
    (axes("replicas = 1\nplacement = {replicas = 2}"), "axes.replicas = 1: axes.placement"),
    (axes("options = 1"), "axes.options = 1: expected a table"),
    ("[axes.options.tile]\n", "axes.options.tile: unknown key; did you mean \"tiled\"?"),
    ("[axes.options.null]\n", "axes.options.null: axes.backend must name it too"),
    (axes("backend = 'null'") + tiled("tile = 8"), "axes.options.tiled: axes.backend must name it"),
    (tiled("tiles = 8"), "axes.options.tiled.tiles: unknown key; did you mean \"tile\"?"),
    (tiled("tile = 0"), "axes.options.tiled.tile = 0: expected a whole number, at least 1"),
    (tiled("tile = [8, 8]"), "axes.options.tiled.tile[1] = 8: given twice"),
    (tiled("fuse = 1"), "axes.options.tiled.fuse = 1: expected true or false"),
    (tiled("depth = nan"), "axes.options.tiled.depth = NaN: expected a number"),
    (tiled("method = 'c'"), 'axes.options.tiled.method = "c": unknown'),
    (
        axes("precision = 'fp32'") + tiled("method = ['a', 'b']"),
        'axes.options.tiled.method = ["a", "b"]: no effect in this space, only where precision is',
    ),
    (
        tiled("fuse = false\ndepth = 2"),
        "axes.options.tiled.depth = 2: no effect in this space, only where fuse is true",
    ),
    (tiled(f"tile = {[*range(1, 9_000)]}"), "axes.options.tiled: more than 10,000 combinations"),
    ("exclude = 1", "exclude = 1: expected a list of: a table"),
    ("[[exclude]]\n", "exclude[0]: empty"),
    ("[[exclude]]\nbackends = 'tiled'", "exclude[0].backends: unknown key; did you mean"),
    ("[[exclude]]\ndevice = 'cpu'", "exclude[0].device: unknown key"),
    ("[[exclude]]\nbatch_size = 3", 'exclude[0] = {"batch_size": 3}: matches no cell'),
    ("[[exclude]]\nbackend = 'torch-eager'\nfuse = true", "exclude[0]", "matches no cell"),
    ("[[exclude]]\nmethod = 'a'\nprecision = 'fp32'", "exclude[0]", "matches no cell"),
    (
        f"[axes]\ninput = 'float32'\n[[exclude]]\nbatch_size = {[*range(1, 2000)]}",
        "exclude: more than 1,000 combinations",
    ),
    ("[axes\n", "not valid TOML", "line 1"),
    ("a = 1\na = 2\n\n", "not valid TOML", "line 2"),
    (f"x = {'[' * 5000}", "not valid TOML"),
    (f"{'a.' * 30}a = 1", "not valid TOML for a space: a key of 20 parts"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[1][:60])
def test_bad_files(tmp_path: Path, case: tuple[str, ...]) -> None:
    text, *fragments = case
    with pytest.raises(SuiteError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"space {tmp_path / 'mine.toml'}")
    assert [f for f in fragments if f not in message] == [], message
    assert "\n" not in message  # one mistake, one line
    assert len(message) - len(str(tmp_path)) < 400


def test_all_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        read(tmp_path, axes("batch_size = 0\nprecision = 'x'") + tiled("tile = 'y'"))
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("mine.toml has 3 mistakes:")
    assert [line.split()[0] for line in lines] == [
        "axes.batch_size",
        "axes.precision",
        "axes.options.tiled.tile",
    ]
    with pytest.raises(SuiteError, match="has 3 mistakes"):
        read(
            tmp_path,
            "[axes]\nreplicas = 9\n[axes.options.null]\n[[exclude]]\nbatch_size = 7\n",
        )


def test_cores_of_replicas_on_gpus(tmp_path: Path) -> None:
    text = "[axes]\nplacement = [{ replicas = 1, cores = 2 }, { replicas = 4 }]\n"
    with pytest.raises(SuiteError) as caught:
        read(tmp_path, text, device="cuda", gpus=2)
    assert "axes.placement[0].cores = 2: replicas own GPUs here" in str(caught.value)
    assert "axes.placement[1] = " in str(caught.value)
    assert "needs 4 GPUs; visible: 2" in str(caught.value)


def test_rules_that_leave_nothing(tmp_path: Path) -> None:
    found = read(tmp_path, "[axes]\nbackend = 'tiled'\n[[exclude]]\nbackend = 'tiled'\n")
    with pytest.raises(SuiteError, match=r"no configuration .* the rules in exclude match all"):
        cells(found)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"space .*none\.toml: cannot be read: No such file"):
        space.read(tmp_path / "none.toml", make(), CATALOG)
    with pytest.raises(SuiteError, match="cannot be read: Is a directory"):
        space.read(tmp_path, make(), CATALOG)
    path = tmp_path / "mine.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(SuiteError, match="not UTF-8 text: byte 5 is 0xff"):
        space.read(path, make(), CATALOG)
    path.write_text('[axes]\nprecision = "\\u001b[31m"')
    with pytest.raises(SuiteError) as caught:
        space.read(path, make(), CATALOG)
    assert "\x1b" not in str(caught.value)


def test_a_suite_is_no_space(tmp_path: Path) -> None:
    shipped = next(path for path in file.shipped() if path.stem == "quick")
    with pytest.raises(SuiteError, match="mistakes"):
        space.read(shipped, make(), CATALOG)


def test_placement_beside_replicas_is_one_mistake(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as error:
        read(tmp_path, "[axes]\nreplicas = 1\nplacement = [{ replicas = 1, cores = 4 }]\n", cores=4)
    assert "axes.placement has them too; give one" in str(error.value)
    assert "given twice" not in str(error.value)
