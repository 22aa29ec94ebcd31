"""Building engines: real ones, by TensorRT for RTX without a GPU, and builders that refuse."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Bag
from typing import Any

import pytest

from gpubench.backends import _trt_build
from gpubench.backends._trt_build import BuildSettings, build
from gpubench.cache import Cache
from gpubench.errors import CellFailed, Unavailable
from gpubench.machine.gpu import visible_gpus
from gpubench.suite.types import Workload
from gpubench.workload.models import builder, registry
from tests.backends.fake_tensorrt import FakeTrt
from tests.backends.onnx_files import conv_net

LOAD_MODULE = builder.load_module
ANY_GPU = BuildSettings(batch_size=4, current_gpu=False)


# Real engines


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="install gpubench[tensorrt-rtx]")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_real_engine_is_built(rtx: Any, tmp_path: Path, precision: str) -> None:
    file = conv_net(tmp_path / "net.onnx", precision)
    built = build(rtx, "tensorrt_rtx", file, ANY_GPU)
    assert len(built.plan) > 10_000
    assert built.flags == []


def test_tf32_is_set_only_when_asked_for(rtx: Any, tmp_path: Path) -> None:
    file = conv_net(tmp_path / "net.onnx")
    settings = BuildSettings(batch_size=4, tf32=True, workspace_mib=64, current_gpu=False)
    assert build(rtx, "tensorrt_rtx", file, settings).flags == ["TF32"]


def test_an_engine_that_can_be_captured_is_built(rtx: Any, tmp_path: Path) -> None:
    settings = BuildSettings(batch_size=4, current_gpu=False, user_memory=True)
    built = build(rtx, "tensorrt_rtx", conv_net(tmp_path / "net.onnx"), settings)
    assert built.flags == ["REQUIRE_USER_ALLOCATION"]


def test_weights_in_a_file_beside_the_network(rtx: Any, tmp_path: Path) -> None:
    file = conv_net(tmp_path / "net.onnx", external="net.data")
    assert build(rtx, "tensorrt_rtx", file, ANY_GPU).plan
    (tmp_path / "net.data").unlink()
    with pytest.raises(CellFailed, match=r"(?s)cannot parse net.onnx: .*net.data.*initializer: w"):
        build(rtx, "tensorrt_rtx", file, ANY_GPU)


def test_a_network_of_fixed_batch_size(rtx: Any, tmp_path: Path) -> None:
    file = conv_net(tmp_path / "net.onnx", batch=4)
    assert build(rtx, "tensorrt_rtx", file, ANY_GPU).plan
    with pytest.raises(CellFailed, match=r"shape \(4, 3, 8, 8\).* must be the batch size, 8"):
        build(rtx, "tensorrt_rtx", file, BuildSettings(batch_size=8, current_gpu=False))


def test_the_parsers_own_words(rtx: Any, tmp_path: Path) -> None:
    file = conv_net(tmp_path / "net.onnx", operator="Frobnicate")
    with pytest.raises(CellFailed, match="Frobnicate") as caught:
        build(rtx, "tensorrt_rtx", file, ANY_GPU)
    assert caught.value.kind == "error"
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(CellFailed, match="Failed to parse the ONNX model"):
        build(rtx, "tensorrt_rtx", tmp_path / "junk.onnx", ANY_GPU)


def test_the_builders_own_words(rtx: Any, tmp_path: Path) -> None:
    if visible_gpus():
        pytest.skip("there is a GPU, so building for it does not fail")
    with pytest.raises(CellFailed, match=r"cannot build an engine.*CUDA driver"):
        build(rtx, "tensorrt_rtx", conv_net(tmp_path / "n.onnx"), BuildSettings(batch_size=4))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_a_real_resnet18_as_the_workload_exports_it(
    rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, size: int
) -> None:
    monkeypatch.setattr(builder, "load_module", LOAD_MODULE)  # this directory's is a tiny network
    cache = Cache(tmp_path / "cache")
    work = Workload(model="resnet18", weights="random", images="synthetic")
    file = registry.resolve(work, cache).onnx(precision)
    plan = build(rtx, "tensorrt_rtx", file, ANY_GPU).plan
    weights = 11_689_512 * size
    assert weights < len(plan) < 1.2 * weights, "weights are kept in the file's own type"


# Building, with a TensorRT that refuses


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"parse_from_file": False}, "cannot parse net.onnx: .*unknown operator Foo"),
        ({"build_serialized_network": None}, "build_serialized_network refused"),
        ({"add_optimization_profile": -1}, "profile .4, 3, 2, 2. of 'images' was refused: add_opt"),
        ({"set_compute_capability": False}, "cannot target this GPU: set_compute"),
        ({"shape": (-1, 3, -1, -1)}, "only its first dimension"),
        ({"shape": (-1,)}, "only its first dimension"),
        ({"num_inputs": 2}, "2 inputs"),
    ],
)
def test_a_refusal_while_building_raises(answers: dict[str, Any], words: str) -> None:
    with pytest.raises(CellFailed, match=words):
        build(FakeTrt(**answers), "tensorrt_rtx", Path("net.onnx"), BuildSettings(batch_size=4))


def test_what_the_builder_is_told() -> None:
    trt = FakeTrt()
    settings = BuildSettings(batch_size=4, workspace_mib=2, optimization_level=5)
    build(trt, "tensorrt", Path("net.onnx"), settings)
    assert trt.called("create_network") == [(1 << 1,)], "strongly typed"
    assert trt.called("set_shape") == [("images", *[(4, 3, 2, 2)] * 3)]
    assert trt.called("set_memory_pool_limit") == [("WORKSPACE", 2 << 20)]
    assert trt.config.builder_optimization_level == 5
    assert trt.config.avg_timing_iterations == 8
    assert trt.called("set_compute_capability") == []
    build(trt, "tensorrt_rtx", Path("net.onnx"), settings)
    assert trt.called("set_compute_capability") == [("CURRENT", 0)]


def test_a_build_route_is_taken_or_told() -> None:
    class Routed(FakeTrt):
        def Builder(self, log: Any) -> Any:  # noqa: N802
            builder = super().Builder(log)
            routes = self.answers.get("routes", "")

            class Config(Bag):
                all_build_routes = '{"conv": ["on", "off"]}'
                build_route = property(lambda own: own.chosen, lambda own, v: own.choose(v))

                def choose(self, value: str) -> None:
                    self.chosen = routes and value

            self.config = builder.create_builder_config()
            config = Config(**vars(self.config), chosen="")
            builder.create_builder_config = lambda: config
            self.config = config
            return builder

    settings = BuildSettings(batch_size=4, build_route="-conv=off")
    trt = Routed(routes="any")
    build(trt, "tensorrt", Path("net.onnx"), settings)
    assert trt.config.chosen == "-conv=off"
    with pytest.raises(CellFailed, match=r"build_route = '-conv=off' is refused: known: .*conv"):
        build(Routed(), "tensorrt", Path("net.onnx"), settings)


def test_timings_are_reused_and_those_of_another_device_are_dropped() -> None:
    trt = FakeTrt()
    kept = build(trt, "tensorrt", Path("net.onnx"), ANY_GPU, b"old")
    assert kept.timing_cache == b"old+"

    class Picky(FakeTrt):
        def say(self, name: str, default: Any, *arguments: Any) -> Any:
            if name == "set_timing_cache":
                default = arguments[0].serialize() == b"+"
            return super().say(name, default, *arguments)

    assert build(Picky(), "tensorrt", Path("n.onnx"), ANY_GPU, b"old").timing_cache == b"+"
    with pytest.raises(CellFailed, match="empty timing cache was refused"):
        build(FakeTrt(set_timing_cache=False), "tensorrt", Path("n.onnx"), ANY_GPU)
    rtx = FakeTrt()
    assert build(rtx, "tensorrt_rtx", Path("n.onnx"), ANY_GPU, b"old").timing_cache == b""
    assert rtx.called("create_timing_cache") == [], "a deprecated no-op there"


# Loading a flavour


def test_loading_checks_the_version_that_is_really_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trt_build, "import_module", lambda name: Bag(__version__="10.11.0.33"))
    with pytest.raises(Unavailable, match=r"needs >=10\.12"):
        _trt_build.load_flavour("tensorrt")

    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(_trt_build, "import_module", broken)
    with pytest.raises(Unavailable, match=r"tensorrt cannot be loaded: libnvinfer.so.10"):
        _trt_build.load_flavour("tensorrt")
