"""A whole product on the fake backend: a tiny ONNX model, a suite, real agents and workers."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubench.cache import Cache
from gpubench.machine.software import no_telemetry

GPUBENCH = [sys.executable, "-c", "from gpubench.cli.main import main; main()"]
WITHOUT_PAGE = [
    *GPUBENCH[:2],
    "from gpubench import report; report.render = lambda *_: 'no report'; " + GPUBENCH[2],
]
"""Rendering HTML takes longer than all the rest of a run on the fake backend."""
FAKES = Path(__file__).parent / "fakes"
SIDE = 16
LEFT_OUT = pytest.StashKey[int]()
# Where it is set (container images do), each of hundreds of processes compiles all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# One of several test processes; a pytest that a test starts is none of them.
ONE_OF_SEVERAL = os.environ.pop("PYTEST_XDIST_WORKER", "") != ""
if ONE_OF_SEVERAL:
    os.environ["COLUMNS"] = "140"  # as where there is no terminal: the first process's is told
sys.dont_write_bytecode = False
no_telemetry()  # of the runtimes that tests import themselves
POLICY = {
    "repeats": 2,
    "max_repeats": 2,
    "warmup_s": 0.01,
    "duration_s": 0.02,
    "block_s": 0.005,
    "max_relative_error": 0.001,
    "min_top1_agreement": 1.0,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked slow, unless --runslow."""
    if not config.getoption("runslow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.stash[LEFT_OUT] = len(slow)
        config.hook.pytest_deselected(items=slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out = terminalreporter.config.stash.get(LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(f"Slow tests left out: {left_out} (--runslow adds them)")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the fake backends, here and in every process started from here."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv("PYTHONPATH", str(FAKES))


@pytest.fixture(scope="module")
def few_objects() -> Iterator[None]:
    """For tests that collect garbage: after torch is imported, each time would take a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `gpubench_fakes.logits` computes, as an ONNX file: the reference of the fake."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((3 * 8 * 8, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node(
                "AveragePool",
                ["images"],
                ["pooled"],
                kernel_shape=[SIDE // 8] * 2,
                strides=[SIDE // 8] * 2,
            ),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of all test processes: what is slow to make is made once."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if ONE_OF_SEVERAL else base) / "made-once"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def cache(made_once: Path) -> Cache:
    """Of networks, their exports and their answers."""
    return Cache(made_once / "networks")


@pytest.fixture
def write_suite(fakes: None, tmp_path: Path, tiny_onnx: Path) -> Callable[..., Path]:
    """write_suite(axes="...", policy="...") -> path of a suite over the fake backend."""

    def write(axes: str = "", policy: dict[str, float] | None = None, **changes: Any) -> Path:
        values = {
            "backend": '["fake"]',
            "batch_size": "[1, 4]",
            "scenario": '["latency"]',
            "device": '"cpu"',
        } | changes
        lines = [f"{key} = {value}" for key, value in values.items()]
        path = tmp_path / "tiny.toml"
        rules = POLICY | (policy or {})
        path.write_text(
            f'[workload]\nmodel = "{tiny_onnx}"\nweights = "file"\nimages = "synthetic"\n'
            + "\n".join(["[axes]", *lines, "cores = 1", axes])
            + "\n".join(["\n[policy]", *(f"{key} = {value}" for key, value in rules.items())])
        )
        return path

    return write
