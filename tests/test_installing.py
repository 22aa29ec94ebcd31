"""What is installed already stays as it is: pip and uv, with empty wheels in place of real ones.

The requirements are gpubench's own. Newer wheels of everything lie there, so whatever would be
replaced is.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NEWER = "99.0"
PYTHON = sys.executable
OWN = metadata("gpubench")
VENDOR = {"torch": "2.11.0a0+abc.nv26.01", "torchvision": "0.26.0a0+abc", "numpy": "1.26.4"}
"""As in a vendor's image: called after the release to come."""
HERE = [
    ("torch,onnxruntime,tensorrt", VENDOR | {"tensorrt": "10.14.1.48", "onnxruntime": "1.30.0"}),
    ("cpu,tensorrt", {"tensorrt": "10.16.0.72", "onnxruntime": "1.31.0.dev20260901"}),  # a system's
    ("cpu", {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu", "openvino": "2025.4.0"}),
    ("cuda", {"torch": "2.9.1+cu126", "torchvision": "0.24.1+cu126", "onnxruntime-gpu": "1.25.1"}),
]


def wheel(folder: Path, name: str, version: str, *lines: str) -> None:
    """An empty package; ``lines`` more of its metadata."""
    base = f"{name.replace('-', '_')}-{version}"
    about = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines]
    kind = ["Wheel-Version: 1.0", "Generator: tests", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    with zipfile.ZipFile(folder / f"{base}-py3-none-any.whl", "w") as archive:
        for file, body in (("METADATA", about), ("WHEEL", kind)):
            archive.writestr(f"{base}.dist-info/{file}", "\n".join(body) + "\n")
        archive.writestr(f"{base}.dist-info/RECORD", f"{base}.dist-info/METADATA,,\n")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpubench's requirements, a newer release of each of them, and what is `HERE`."""
    folder = tmp_path_factory.mktemp("wheels")
    needs = OWN.get_all("Requires-Dist") or []
    extras = [f"Provides-Extra: {extra}" for extra in OWN.get_all("Provides-Extra") or []]
    wheel(folder, "gpubench", "1.0", *extras, *(f"Requires-Dist: {line}" for line in needs))
    for name in {Requirement(line).name for line in needs} - {"gpubench"}:
        wheel(folder, name, NEWER)
    for name, version in [("scipy", "1.14.0"), *(one for _, here in HERE for one in here.items())]:
        wheel(folder, name, version)
    return folder


OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1"}


def run(*words: str | Path) -> str:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
    done = subprocess.run(words, env=environ | OFFLINE, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("uv"), reason="needs uv: pip install uv")
@pytest.mark.parametrize("tool", ["pip", "uv"])
@pytest.mark.parametrize(("extras", "here"), HERE)
def test_versions_that_are_there_stay(
    extras: str, here: dict[str, str], tool: str, wheels: Path, tmp_path: Path
) -> None:
    run("uv", "venv", "-q", "--python", PYTHON, *(["--seed"] * (tool == "pip")), tmp_path / "v")
    python = tmp_path / "v/bin/python"
    (pins := tmp_path / "constraints.txt").write_text("scipy==1.14.0\n")
    install = [python, "-m", "pip"] if tool == "pip" else ["uv", "pip"]
    into = [] if tool == "pip" else ["--python", python]
    offline = [*into, "--no-index", "--find-links", wheels]

    def installed() -> dict[str, str]:
        listed = run("uv", "pip", "list", "--format", "freeze", "--python", python).split()
        return {name: version for name, _, version in (line.partition("==") for line in listed)}

    run(*install, "install", *offline, *(f"{name}=={version}" for name, version in here.items()))
    before = installed()
    run(*install, "install", *offline, "-c", pins, f"gpubench[{extras}]")
    after = installed()
    assert {name: after[name] for name in before} == before
    assert after["gpubench"] == "1.0"
    assert (after["scipy"], after["msgspec"]) == ("1.14.0", NEWER)  # what was not there


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_each_extra_is_installed_from_the_wheel_before_a_release(declared: dict[str, Any]) -> None:
    """But those with libraries on NVIDIA's own index, and what other extras consist of."""
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))
    tried = release["jobs"]["install"]["strategy"]["matrix"]["extra"]
    others = [f"[{name}]" for name in ("tensorrt", "torch-tensorrt", "work")]
    extras = [f"[{name}]" for name in declared["project"]["optional-dependencies"]]
    assert sorted([*tried, *others]) == sorted(["", *extras])


@pytest.fixture
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci/release.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("tag", "log", "told"),
    [
        ("v1.2.3", "## [1.2.3] - 2026-11-30\n\n### Fixed\n\n- x\n\n## [1.2.2]\n", ""),
        ("v1.2.4", "## [1.2.4] - 2026-11-30\n\n- x\n", "tag v1.2.4 is not v1.2.3"),
        ("v1.2.3", "## [Unreleased]\n\n- x\n", "no section"),
        ("v1.2.3", "## [1.2.3] - 2026-11-30\n\n## [1.2.2] - 2026-10-01\n\n- x\n", "no section"),
    ],
)
def test_a_tag_is_the_version_and_has_its_section(
    release: ModuleType, tag: str, log: str, told: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(release, "ROOT", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(log)
    if told:
        with pytest.raises(SystemExit, match=told):
            release.notes(tag, "1.2.3")
    else:
        assert release.notes(tag, "1.2.3") == "### Fixed\n\n- x\n"


def test_archives_with_too_much_or_too_little_are_no_release(
    release: ModuleType, tmp_path: Path
) -> None:
    about = "gpubench-1.2.3.dist-info"
    whole = {*release.WHEEL, f"{about}/METADATA"}
    whole |= {f"{about}/licenses/{name}" for name in release.LICENCES}
    odd = {"tests/test_x.py", "gpubench/net.onnx"}
    archive = tmp_path / "gpubench-1.2.3-py3-none-any.whl"
    for names, faults in (
        (whole, []),
        (whole - {"gpubench/py.typed"}, ["lacks gpubench/py.typed"]),
        (whole | odd, ["has tests/test_x.py", "has gpubench/net.onnx"]),
    ):
        with zipfile.ZipFile(archive, "w") as file:
            for name in names:
                file.writestr(name, "")
        assert release.wheel_faults(archive) == [f"{archive.name} {fault}" for fault in faults]
    source = tmp_path / "gpubench-1.2.3.tar.gz"
    with tarfile.open(source, "w:gz") as file:
        for name in ("pyproject.toml", "suites/quick.toml", "reports/x.json", *release.LICENCES):
            file.addfile(tarfile.TarInfo(f"gpubench-1.2.3/{name}"))
    assert release.sdist_faults(source) == [
        f"{source.name} lacks CHANGELOG.md", f"{source.name} lacks gpubench/py.typed",
        f"{source.name} has reports/x.json",
    ]  # fmt: skip


def test_extras_of_onnxruntime_are_declared_apart(declared: dict[str, Any]) -> None:
    """Their builds have the same files; uv refuses both at once."""
    conflicts = declared["tool"]["uv"]["conflicts"]
    pairs = {frozenset(one.get("extra", one.get("group")) for one in pair) for pair in conflicts}
    for cpu in ("cpu", "onnxruntime"):
        for cuda in ("cuda", "onnxruntime-gpu", "dev"):
            assert frozenset({cpu, cuda}) in pairs
