"""Every TensorRT name that the backend uses exists in TensorRT 10, in 11 and in TensorRT for RTX.

The real Python bindings of the first two are imported over inert libraries, in a subprocess, so
this needs a compiler and a package registry, but no GPU and no native TensorRT.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from gpubench.backends import _trt_build, _trt_session, tensorrt
from tests.backends import trt_names

DATA = Path(__file__).parents[1] / "data/tensorrt_contract"
SOURCES = [Path(str(m.__file__)) for m in (_trt_build, _trt_session, tensorrt)]
FOUND = trt_names.walk(*SOURCES)


def names(flavour: str, release: str = "") -> list[str]:
    """Names that the backend uses with ``flavour``; of 11.1 and later, ``release``, all of them."""
    scopes = {"all", "rtx" if flavour == "tensorrt_rtx" else "trt"}
    scopes |= {"trt11"} if release.startswith("11") else set()
    return sorted(name for name, where in FOUND.names.items() if where & scopes)


def missing(module: str, wanted: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(DATA / "missing.py"), module],
        input="\n".join(wanted),
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


RELEASES = ["tensorrt-cu12-bindings==10.12.*"]  # the oldest that the backend takes
RELEASES += [f"tensorrt-cu13-bindings=={release}.*" for release in ("10.16", "11.1", "11.4")]
RELEASES += ["tensorrt-rtx-cu12-bindings==1.4.*"]  # the oldest of this flavour


@pytest.fixture(scope="session", params=RELEASES)
def bindings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """``flavour``, and the environment in which its bindings of one release can be imported."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C compiler {compiler!r} for the stand-in libraries: install gcc")
    folder = tmp_path_factory.mktemp("tensorrt")
    _fetch(request.param, folder / "wheel")
    script, major = DATA / "build_stubs.sh", request.param.split("==")[1].split(".")[0]
    subprocess.run(["sh", str(script), str(folder / "lib"), major], check=True, timeout=60)
    flavour = "tensorrt_rtx" if "rtx" in request.param else "tensorrt"
    paths = {"LD_LIBRARY_PATH": str(folder / "lib"), "PYTHONPATH": str(folder / "wheel")}
    return {"flavour": flavour, "release": request.param.partition("==")[2], **paths}


def _fetch(requirement: str, target: Path) -> None:
    """Unpack a wheel and nothing that it depends on, with whichever installer works."""
    arguments = ["install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    tail = [*arguments, "--target", str(target), requirement]
    installers = [["uv", "pip"], [sys.executable, "-m", "pip"], ["pip"]]
    reason = "no pip and no uv"
    for installer in installers:
        if shutil.which(installer[0]) is None:
            continue
        python = ["--python", sys.executable] if installer[0] == "uv" else []
        done = subprocess.run(
            [*installer, *tail, *python], capture_output=True, text=True, timeout=180, check=False
        )
        if done.returncode == 0:
            return
        reason = (done.stderr.strip().splitlines() or ["failed"])[-1]
    pytest.skip(f"{requirement} not to be had ({reason}): give access to a package registry")


def test_every_name_is_accounted_for() -> None:
    assert FOUND.problems == []
    used = {name for name in FOUND.names if "." in name}
    assert used == set(trt_names.RETURNS), "the table names what the backend does not use"


def test_every_release_has_every_name(bindings: dict[str, str]) -> None:
    wanted = names(bindings["flavour"], bindings["release"])
    assert len(wanted) > 60
    assert missing(bindings["flavour"] + "_bindings", wanted, bindings) == []


def test_a_name_that_is_not_there_is_reported(bindings: dict[str, str]) -> None:
    wrong = ["Builder.create_engine", "BuilderFlag.TF33", "IExecutor", "Builder.create_network"]
    assert missing(bindings["flavour"] + "_bindings", wrong, bindings) == wrong[:3]


def test_rtx_names_are_kept_out_of_the_other_flavour(bindings: dict[str, str]) -> None:
    only = sorted(set(names("tensorrt_rtx")) - set(names("tensorrt")))
    assert "ComputeCapability.CURRENT" in only
    if bindings["flavour"] == "tensorrt":
        assert "ComputeCapability.CURRENT" in missing("tensorrt_bindings", only, bindings)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="install gpubench[tensorrt-rtx]")
def test_rtx_has_every_name() -> None:
    assert missing("tensorrt_rtx", names("tensorrt_rtx"), {}) == []
    assert missing("tensorrt_rtx", ["BuilderFlag.FP16"], {}) == ["BuilderFlag.FP16"]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def f(trt):\n    trt.BuilderFlag.FP16", "BuilderFlag.FP16 is not in the table"),
        ("def f(trt):\n    trt.IExecutor", "IExecutor is not in the table"),
        ("def f(trt):\n    b = trt.Builder(0)\n    b.platform_has_tf32", "platform_has_tf32"),
        ("def f(network):\n    network.get_input(0).dynamic_range", "ITensor.dynamic_range"),
        ("def f(config):\n    config.int8_calibrator = 1", "IBuilderConfig.int8_calibrator"),
        ("def f(trt):\n    hasattr(trt.BuilderFlag, 'FP16')", "BuilderFlag escapes into hasattr"),
        ("def f(engine):\n    g(engine)", "ICudaEngine escapes into g"),
        ("def f(engine):\n    box = []\n    box[0] = engine", "cannot be followed"),
        (
            "class C:\n"
            "    def f(self, engine):\n        self.e = engine\n"
            "    def g(self):\n        self.e.max_batch_size",
            "ICudaEngine.max_batch_size",
        ),
    ],
)
def test_the_walk_sees_what_it_should(code: str, problem: str) -> None:
    (found,) = trt_names.Walk().source(code).problems
    assert problem in found


def test_the_walk_knows_for_which_flavour_a_name_is() -> None:
    bodies = ("f_rtx", "Builder"), ("g_trt", "Runtime"), ("h", "Builder")
    code = "\n".join(f"def {name}(trt):\n    trt.{used}" for name, used in bodies)
    found = trt_names.Walk().source(code).names
    assert found == {"Builder": {"rtx", "all"}, "Runtime": {"trt"}}
