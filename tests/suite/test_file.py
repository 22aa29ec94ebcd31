"""Suite files: reading, expanding, finding, overriding. What is wrong: test_schema.py."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from msgspec.structs import replace

from gpubench.backends import base
from gpubench.errors import SuiteError
from gpubench.pipeline.decoders import base as decoders
from gpubench.suite import file, grid
from gpubench.suite.types import (
    Axes,
    Catalog,
    Cell,
    Option,
    Policy,
    Preprocess,
    Suite,
    Workload,
    title,
    weights_file,
)
from tests.measure.virtual import make_cell

CATALOG = Catalog(
    backends={
        "torch-eager": (
            Option(name="cuda_graph", kind="bool", default=False, help="Capture a CUDA graph."),
            Option(
                name="memory_format",
                kind="str",
                default="contiguous",
                help="Layout of tensors.",
                choices=("contiguous", "channels_last"),
            ),
        ),
        "onnxruntime": (
            Option(name="spin_s", kind="float", default=0.1, help="Spin.", minimum=0, maximum=1),
        ),
        "openvino": (
            Option(name="streams", kind="int", default=0, help="Streams.", minimum=0, maximum=64),
            Option(name="tag", kind="str", default="", help="Free text."),
        ),
        "null": (),
    },
    models=("resnet18", "resnet50", "vit_b_16"),
)

GOOD = """
description = "all keys"
baseline = "onnxruntime"
[workload]
model = "resnet50"
weights = "DEFAULT"
images = "photos"
[axes]
backend = ["torch-eager", "onnxruntime", "openvino"]
device = "auto"
precision = ["fp32", "bf16"]
batch_size = [1, 8]
replicas = [1, 2]
cores = 0
scenario = ["latency", "throughput"]
boundary = "compute"
[axes.options.torch-eager]
cuda_graph = [false, true]
[axes.options.onnxruntime]
spin_s = 1
[[exclude]]
batch_size = 8
replicas = 2
[[exclude]]
cuda_graph = true
precision = ["bf16"]
[policy]
repeats = 2
max_repeats = 4
duration_s = 1
"""


def write(tmp_path: Path, text: str, name: str = "mine.toml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def load(tmp_path: Path, text: str, **overrides: Any) -> Suite:
    return file.load(write(tmp_path, text), CATALOG, overrides)


def axes(extra: str = "", backend: str = '"null"') -> str:
    return f"[axes]\nbackend = {backend}\n{extra}\n"


# ------------------------------------------------------------------------------ good suites


def test_keys_by_their_former_names_are_taken(tmp_path: Path) -> None:
    text = axes() + "[policy]\nsample_s = 3\nmin_path_agreement = 0.5"
    policy = load(tmp_path, text).policy
    assert (policy.duration_s, policy.min_pipeline_agreement) == (3, 0.5)
    assert load(tmp_path, text, duration_s=2).policy.duration_s == 2
    with pytest.raises(SuiteError, match=r"policy\.sample_s = \"x\"|policy\.duration_s = \"x\""):
        load(tmp_path, axes() + '[policy]\nsample_s = "x"')


def test_every_key_is_read(tmp_path: Path) -> None:
    suite = load(tmp_path, GOOD)
    assert suite.name == "mine"
    assert suite.description == "all keys"
    assert suite.baseline == "onnxruntime"
    assert suite.workload == Workload(model="resnet50", weights="DEFAULT", images="photos")
    assert suite.axes == Axes(
        backend=("torch-eager", "onnxruntime", "openvino"),
        precision=("fp32", "bf16"),
        batch_size=(1, 8),
        replicas=(1, 2),
        options={"torch-eager": {"cuda_graph": (False, True)}, "onnxruntime": {"spin_s": (1.0,)}},
    )
    assert suite.policy == Policy(repeats=2, max_repeats=4, duration_s=1.0)
    assert suite.exclude == (
        {"batch_size": 8, "replicas": 2},
        {"cuda_graph": True, "precision": "bf16"},
    )


def test_preprocessing_is_read_and_overridden_key_by_key(tmp_path: Path) -> None:
    text = axes() + "[workload.preprocess]\nsize = [32, 48]\nresize = 40\nmean = 0.5\n"
    assert load(tmp_path, axes() + "[workload.preprocess]\n").workload == Workload()
    suite = load(tmp_path, text)
    said = Preprocess(size=(32, 48), resize=40, mean=(0.5,))
    assert suite.workload.preprocess == said
    [cell] = grid.expand(load(tmp_path, text, scenario=["latency"]), "cpu", 1)
    assert cell.workload == suite.workload
    assert cell.key != msgspec.structs.replace(cell, preprocess=None).key
    other = load(tmp_path, text, preprocess={"crop": False, "std": [1, 2, 3], "layout": "NHWC"})
    assert other.workload.preprocess == Preprocess(
        size=(32, 48), crop=False, mean=(0.5,), std=(1, 2, 3), layout="NHWC"
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"std": 0}, "std = 0: expected a number, above 0"),
        ({"std": [1, -1, 1]}, "std"),
        ({"mean": [1, 2]}, "mean = [1.0, 2.0]: 2 values; expected one, or one for each of 3"),
        ({"mean": [1, 2, 3, 4]}, "mean = [1, 2, 3, 4]: 4 values; expected 1 to 3"),
        (
            {"mean": [1, 2, 3], "channels": "grey"},
            "mean = [1.0, 2.0, 3.0]: 3 values; expected 1 of grey",
        ),
        ({"mean": "half"}, 'mean = "half": expected a number, or a list of those'),
        ({"size": [1, 2, 3]}, "size = [1, 2, 3]: 3 values; expected 2"),
        ({"size": [9]}, "size = [9]: 1 values; expected 2: a whole number"),
        ({"size": 0}, "size = 0: expected a whole number, at least 1"),
        ({"size": 64, "resize": 32}, "resize = 32: below size, 64: the crop would have black"),
        ({"crop": False, "resize": 32}, "resize = 32: crop = false goes straight to size"),
        ({"range": [1, 1]}, "range = [1.0, 1.0]: expected the lower end first"),
        ({"range": 255}, "range = 255: expected a list of: a number"),
        ({"layout": "CHWN"}, 'layout = "CHWN": unknown;'),
        ({"interpolation": "cubic"}, 'interpolation = "cubic": unknown; did you mean "bicubic"?'),
        ({"order": "bgr"}, "order: unknown key"),
    ],
    ids=str,
)
def test_mistakes_in_preprocessing_are_told_with_the_key(
    tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in said.items())
    with pytest.raises(SuiteError, match=re.escape(f"workload.preprocess.{message}")):
        load(tmp_path, axes() + f"[workload.preprocess]\n{lines}")
    with pytest.raises(SuiteError, match=re.escape(f"--preprocess {message}")):
        load(tmp_path, axes(), preprocess=said)


def test_defaults_are_those_of_the_structs(tmp_path: Path) -> None:
    suite = load(tmp_path, axes())
    assert suite.workload == Workload()
    assert suite.axes == Axes(backend=("null",))
    assert suite.policy == Policy()
    assert suite.baseline == "null"


def test_max_repeats_follows_repeats(tmp_path: Path) -> None:
    assert load(tmp_path, axes() + "[policy]\nrepeats = 7").policy.max_repeats == 7


def test_expand_is_the_product_in_file_order_less_the_exclusions(tmp_path: Path) -> None:
    cells = grid.expand(load(tmp_path, GOOD), "cpu", 8)
    plain = 2 * 3 * 2  # precisions x (batch, replicas) without 8 x 2 x scenarios
    graph = 1 * 3 * 2  # fp32 only
    assert len(cells) == 3 * plain + graph
    assert [c.backend for c in cells] == sorted(
        (c.backend for c in cells), key=["torch-eager", "onnxruntime", "openvino"].index
    )
    assert cells[0].label == "torch-eager fp32 b1 x1 latency cuda_graph=False"
    assert not [c for c in cells if c.batch_size == 8 and c.replicas == 2]
    assert not [c for c in cells if c.options.get("cuda_graph") and c.precision == "bf16"]
    assert [c for c in cells if c.options.get("cuda_graph") is False and c.precision == "bf16"]
    assert all(c.options == {"spin_s": 1.0} for c in cells if c.backend == "onnxruntime")
    assert len({c.key for c in cells}) == len(cells)


@pytest.mark.parametrize(
    ("asked", "device", "machine", "cores"),
    [(0, "cpu", 8, 2), (0, "cpu", 9, 2), (0, "cpu", 2, 1), (3, "cpu", 8, 3), (0, "cuda", 8, 0)],
)
def test_cores_of_a_replica(
    tmp_path: Path, asked: int, device: Any, machine: int, cores: int
) -> None:
    suite = load(tmp_path, axes(f"replicas = [1, 4]\ncores = {asked}"))
    assert {c.cores for c in grid.expand(suite, device, machine)} == {cores}


def test_a_true_rule_does_not_match_the_number_one(tmp_path: Path) -> None:
    text = axes("[axes.options.openvino]\nstreams = [1, 2]", '["openvino", "torch-eager"]')
    suite = load(tmp_path, text + "[axes.options.torch-eager]\ncuda_graph = [true, false]")
    rule = msgspec.structs.replace(suite, exclude=({"streams": True},))
    assert len(grid.expand(rule, "cpu", 1)) == len(grid.expand(suite, "cpu", 1))


def test_exclusions_that_leave_nothing_on_the_device(tmp_path: Path) -> None:
    suite = load(tmp_path, axes() + '[[exclude]]\ndevice = "cpu"')
    assert len(grid.expand(suite, "cuda", 1)) == 2
    with pytest.raises(SuiteError, match="suite mine: the exclusions leave no cell on device cpu"):
        grid.expand(suite, "cpu", 1)


def test_paths_are_relative_to_the_suite_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "net.onnx").touch()
    (tmp_path / "w.pt").touch()
    work = '[workload]\nmodel = "net.onnx"\nimages = "cats"\n'
    suite = load(tmp_path, work + axes())
    assert suite.workload == Workload(
        model=str(tmp_path / "net.onnx"), weights="file", images=str(tmp_path / "cats")
    )
    suite = load(tmp_path, '[workload]\nweights = "w.pt"\n' + axes())
    assert suite.workload.weights == str(tmp_path / "w.pt")
    suite = load(tmp_path, '[workload]\nweights = "w.pt#model_ema"\n' + axes())
    assert suite.workload.weights == f"{tmp_path}/w.pt#model_ema"
    assert weights_file(suite.workload.weights) == (str(tmp_path / "w.pt"), "model_ema")
    with pytest.raises(SuiteError, match=r"weights = .*cats.: a folder; give the file in it"):
        load(tmp_path, '[workload]\nweights = "cats"\n' + axes())
    (tmp_path / "a#b.pt").touch()
    assert weights_file(f"{tmp_path}/a#b.pt") == (f"{tmp_path}/a#b.pt", "")
    # the same file name in the working directory is not found from the file, but is by an option
    work_dir = tmp_path / "elsewhere"
    work_dir.mkdir()
    (work_dir / "only_here.pt").touch()
    monkeypatch.chdir(work_dir)
    with pytest.raises(SuiteError, match=r"workload\.weights = .only_here\.pt.: no such file"):
        load(tmp_path, '[workload]\nweights = "only_here.pt"\n' + axes())
    suite = load(tmp_path, axes(), weights="only_here.pt")
    assert suite.workload.weights == str(work_dir / "only_here.pt")


def test_a_folder_called_like_a_model_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "resnet18").mkdir()
    (tmp_path / "digits").mkdir()
    assert load(tmp_path, axes()).workload == Workload()


# ------------------------------------------------------------------------------ finding


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert file.find("quick").name == "quick.toml"
    mine = write(tmp_path, axes())
    assert file.find(mine) == Path(mine)
    with pytest.raises(
        SuiteError, match=r'"quik"; did you mean "quick"\? \(known: ci, gpu, latency'
    ):
        file.find("quik")
    with pytest.raises(SuiteError, match=r'no suite and no file called "other/quick\.toml"'):
        file.find("other/quick.toml")
    with pytest.raises(SuiteError, match="is a directory"):
        file.find(str(tmp_path))
    with pytest.raises(SuiteError, match="no suite and no file"):
        file.find("x" * 5000)


# ------------------------------------------------------------------------------ overrides


def test_overrides(tmp_path: Path) -> None:
    suite = load(
        tmp_path,
        GOOD,
        backend=["openvino", "null"],
        batch_size=["4", "16"],
        replicas=[1],
        model="resnet18",
        weights="random",
        images="synthetic",
        precision="fp32",
        device="cpu",
        repeats=1,
        duration_s="0.5",
        scenario=None,
    )
    assert suite.workload == Workload(model="resnet18", weights="random", images="synthetic")
    assert suite.axes.backend == ("openvino", "null")
    assert suite.baseline == "openvino"  # the file's baseline is not measured any more
    assert suite.axes.options == {}
    assert suite.axes.batch_size == (4, 16)
    assert suite.axes.device == "cpu"
    assert suite.axes.scenario == ("latency", "throughput")
    assert (suite.policy.repeats, suite.policy.max_repeats, suite.policy.duration_s) == (1, 1, 0.5)
    assert len(grid.expand(suite, "cpu", 2)) == 8  # dead rules of the file are no mistake


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": [0]}, "--batch-size = 0: expected a whole number, at least 1"),
        ({"batch_size": ["x"]}, '--batch-size = "x": expected a whole number'),
        ({"batch_size": []}, "--batch-size = []: empty"),
        ({"batch_size": [1, 1]}, "--batch-size = 1: given twice"),
        ({"backend": ["onxruntime"]}, '"onxruntime": unknown; did you mean "onnxruntime"'),
        ({"model": "resnet81"}, '--model = "resnet81": unknown; did you mean "resnet18"'),
        (
            {"images": "digitz"},
            '--images = "digitz": no such folder, .tar shard',
        ),
        ({"weights": "nope.pt"}, '--weights = "nope.pt": no such file'),
        ({"repeats": 5, "max_repeats": 4}, "--max-repeats = 4: below policy.repeats"),
        ({"batchsize": 1}, "--batchsize: there is no such key in a suite; did you mean"),
    ],
)
def test_bad_overrides_name_the_option(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(SuiteError, match=re.escape(message)):
        load(tmp_path, GOOD, **overrides)


def test_an_override_does_not_hide_a_mistake_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"axes\.batch_size = 0"):
        load(tmp_path, axes("batch_size = 0"), batch_size=[1])


def test_the_default_weights_follow_the_kind_of_model(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    onnx = str(tmp_path / "net.onnx")
    text = '[workload]\nweights = "probe"\n' + axes()
    assert load(tmp_path, text, model=onnx).workload.weights == "file"
    text = '[workload]\nmodel = "net.onnx"\n' + axes()
    assert load(tmp_path, text, model="resnet18").workload.weights == "probe"
    assert load(tmp_path, GOOD, model="resnet18").workload.weights == "DEFAULT"


# ------------------------------------------------------------------------------ shipped suites


@pytest.fixture(scope="module")
def installed() -> Catalog:
    from gpubench.workload.models import registry

    backends = {name: base.get(name).options for name in base.names()}
    return Catalog(backends=backends, models=registry.names(), decoders=tuple(decoders.names()))


def test_shipped_names() -> None:
    names = [path.stem for path in file.shipped()]
    assert names == [
        "ci",
        "gpu",
        "latency",
        "pipeline",
        "quick",
        "scaling",
        "selftest",
        "throughput",
    ]


@pytest.mark.parametrize("path", file.shipped(), ids=lambda path: path.stem)
def test_shipped_suites_are_valid(path: Path, installed: Catalog) -> None:
    suite = file.load(path.stem, installed)
    assert suite.description
    assert grid.expand(suite, "cuda" if suite.axes.device == "cuda" else "cpu", 8)
    jsonschema.Draft7Validator(file.schema(installed)).validate(
        tomllib.loads(path.read_text(encoding="utf-8"))
    )


def test_caches_matter_to_the_latency_of_computing_alone(installed: Catalog) -> None:
    both = {"scenario": ["latency", "throughput"], "boundary": ["compute", "transfer"]}
    suite = file.load("quick", installed, both | {"backend": ["torch-eager"], "batch_size": [1]})
    axes = msgspec.structs.replace(suite.axes, cache=("warm", "rotating", "cold"))
    cells = grid.expand(msgspec.structs.replace(suite, axes=axes), "cpu", 2)
    marks: dict[tuple[str, str], set[str]] = {}
    for c in cells:
        marks.setdefault((c.scenario, c.boundary), set()).add(c.cache)
        assert (" cold cache" in c.label) == (c.cache == "cold")
    assert marks.pop(("latency", "compute")) == {"warm", "rotating", "cold"}
    assert set(map(frozenset, marks.values())) == {frozenset(["warm"])}


ALIKE = {
    "memory_format": ("layout", {"contiguous": "NCHW", "channels_last": "NHWC"}),
    "prefer_nhwc": ("layout", {False: "NCHW", True: "NHWC"}),
    "cudnn_benchmark": ("algorithms", {True: "timed", False: "guessed"}),
    "cudnn_conv_algo_search": ("algorithms", {"EXHAUSTIVE": "timed", "HEURISTIC": "guessed"}),
    "cuda_graph": ("graph", {False: False, True: True}),
}
"""Option -> what it is about, and its values in words that all backends share."""


def test_on_a_gpu_no_backend_is_given_what_another_is_denied(installed: Catalog) -> None:
    axes = file.load("gpu", installed).axes
    found: dict[str, dict[str, set[object]]] = {}
    for backend in axes.backend:
        for option in installed.backends[backend]:
            about, words = ALIKE.get(option.name, ("", {}))
            values = axes.options[backend].get(option.name, (option.default,)) if about else ()
            if about:
                found.setdefault(about, {})[backend] = {words[value] for value in values}
    assert {about: len(each) for about, each in found.items()} == {
        "layout": 4, "algorithms": 4, "graph": 6
    }  # fmt: skip
    for each in found.values():
        assert len({frozenset(values) for values in each.values()}) == 1, each


def test_what_the_host_gives_is_an_axis_and_float32_changes_no_key(installed: Catalog) -> None:
    plain = grid.expand(file.load("quick", installed), "cpu", 2)
    three = ["float32", "uint8", "float16"]
    cells = grid.expand(file.load("quick", installed, {"input": three}), "cpu", 2)
    assert [c.input for c in cells if c.batch_size == 1][:3:2] == ["float32", "uint8"]
    assert len(cells) == len({c.key for c in cells}) == 3 * len(plain)
    assert {c.key for c in cells if c.input == "float32"} == {c.key for c in plain}
    for cell in cells:
        old = {k: v for k, v in msgspec.to_builtins(cell).items() if k != "input"}
        assert (msgspec.convert(old, Cell).key == cell.key) == (cell.input == "float32")
        assert ("uint8 input" in cell.label) == (cell.input == "uint8")
    with pytest.raises(SuiteError, match=r'--input = "int8": unknown; did you mean "uint8"'):
        file.load("quick", installed, {"input": ["int8"]})


def test_quick_is_what_the_readme_says(installed: Catalog) -> None:
    suite = file.load("quick", installed)
    cells = grid.expand(suite, "cpu", 2)
    assert {(c.backend, c.batch_size, c.replicas) for c in cells} == {
        (backend, batch, replicas)
        for backend in ("torch-eager", "onnxruntime", "openvino")
        for batch in (1, 4)
        for replicas in (1, 2)
    }
    assert len(cells) == 12
    assert suite.policy.repeats == suite.policy.max_repeats == 5


def test_how_replicas_share_a_gpu_is_an_axis_where_they_do(installed: Catalog) -> None:
    ways = {"sharing": ["mps", "time-slicing"], "replicas": [1, 2], "replicas_per_device": [1, 2]}
    suite = file.load("quick", installed, ways | {"batch_size": [1], "backend": ["torch-eager"]})
    found = [(c.replicas, c.replicas_per_device, c.sharing) for c in grid.expand(suite, "cuda", 2)]
    assert sorted(found) == [(1, 1, "auto"), (2, 1, "auto"), (2, 2, "mps"), (2, 2, "time-slicing")]
    assert {c.sharing for c in grid.expand(suite, "cpu", 2)} == {"auto"}
    assert "2/device mps" in next(
        c.label for c in grid.expand(suite, "cuda", 2) if c.sharing == "mps"
    )


def test_scaling_has_complete_weak_and_strong_series(installed: Catalog) -> None:
    cells = grid.expand(file.load("scaling", installed), "cpu", 4)
    points = {(c.batch_size, c.replicas) for c in cells if c.dispatch == "independent"}
    assert points == {(4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (16, 1)}
    assert {b * r for b, r in points if r > 1} <= {b for b, r in points if r == 1}
    assert {c.cores for c in cells} == {1}
    for dispatch in ("static", "dynamic"):
        jobs = {(c.batch_size, c.replicas) for c in cells if c.dispatch == dispatch}
        assert jobs == {(4, 2), (4, 4)}


def test_what_is_named_by_its_content_is_the_same_cell_in_any_run() -> None:
    at = {"model": "/a/run/Net-0123456789ab.cloudpickle", "images": "/a/run/images-0123456789ab"}
    here = make_cell(**at)
    there = replace(here, **{name: path.replace("/a/run", "/b") for name, path in at.items()})
    assert here.key == there.key
    assert here.key != replace(here, model="/a/run/Net-0123456789ac.cloudpickle").key
    assert replace(here, model="/a/m.onnx").key != replace(here, model="/b/m.onnx").key
    assert title(here.model) == "Net-0123456789ab"
    assert [title(m) for m in ("resnet50", "/a/m.onnx")] == ["resnet50", "/a/m.onnx"]
