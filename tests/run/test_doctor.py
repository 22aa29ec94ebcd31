"""The doctor's findings on made-up machines; real imports that work, fail, crash and hang."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpubench import escape, plugins
from gpubench.backends import base
from gpubench.backends.onnxruntime import CUDA
from gpubench.errors import InputError, Unavailable
from gpubench.machine import cores, import_check
from gpubench.machine.import_check import try_imports
from gpubench.run import doctor
from tests.machine.telemetry.test_energy import sensor, zone


class Good:
    name = "good"
    preload = ("colorsys", "email.mime.text")

    def probe(self) -> dict[str, Any]:
        return {"version": "1.2", "devices": ["a", "b"]}


class Missing(Good):
    name = "missing"

    def probe(self) -> dict[str, Any]:
        raise Unavailable("no engine", "pip install engine")


class NotInstalled(Missing):
    name = "not-installed"
    preload = ("gpubench_nobody_has_this",)


class Broken(Good):
    name = "broken"
    preload = ("gpubench_no_such_module",)


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"good": Good, "missing": Missing, "not-installed": NotInstalled, "broken": Broken}

    def get(name: str) -> Any:
        if name not in known:
            raise InputError(f"backend {name!r} cannot be loaded: oops")
        return known[name]()

    monkeypatch.setattr(base, "names", lambda: [*known, "unloadable"])
    monkeypatch.setattr(base, "get", get)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(cores, "ROOT", root)
    return root


def by_name(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


def facts(**changes: Any) -> dict[str, Any]:
    """An environment without a GPU."""
    return {
        "cpu": {
            "machine": "x86_64",
            "logical": 4,
            "usable": 4,
            "governor": "performance",
            "turbo": None,
        },
        "limits": {"cpus": None},
        "virtualisation": {"hypervisor": False},
        "os": {"name": "Debian", "kernel": "6.1.0-13-amd64"},
        "gpus": [],
        "libraries": {},
        "variables": {},
    } | changes


GPU = {
    "index": 0,
    "uuid": "GPU-1",
    "name": "H100",
    "total_bytes": 80 * 2**30,
    "compute_capability": "9.0",
    "mig": False,
    "driver": "580.1",
    "cuda_driver": "13.0",
    "clocks": "floating",
    "max_sm_clock_mhz": 1980,
    "persistence": False,
}

# ------------------------------------------------------------------------------ imports


def test_imports_that_work_and_fail() -> None:
    found = try_imports(["colorsys", "gpubench_no_such_module", "json"], 30)
    assert found["colorsys"].keys() == {"version", "seconds"}
    assert "No module named 'gpubench_no_such_module'" in found["gpubench_no_such_module"]["error"]
    assert "error" not in found["json"]  # a failure does not stop those after it


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died with SIGSEGV"),
        ("import os; os._exit(3)", "exit code 3"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("import time; time.sleep(60)", "not done after 1 s"),
    ],
)
def test_imports_that_take_the_interpreter_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: str
) -> None:
    (tmp_path / "gpubench_bad_module.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = try_imports(["colorsys", "gpubench_bad_module"], 1 if "sleep" in source else 30)
    why = found["gpubench_bad_module"]["error"]
    assert error in why
    late = import_check.remedy_of(f"it cannot be imported: {why}", "reinstall") != "reinstall"
    assert late == ("sleep" in source)  # a busy machine is no damaged package


def test_chatter_on_stdout_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpubench_loud.py").write_text("print('{\"error\": 1}')\n__version__ = '7'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert try_imports(["gpubench_loud"], 30)["gpubench_loud"]["version"] == "7"


def test_a_library_that_finds_no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "ImportError: libtorch_cpu.so: failed to map segment from shared object"
    assert import_check.remedy_of(why, "reinstall") == "reinstall"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**31, -1))
    assert "`ulimit -v 2097152` allows: raise that" in import_check.remedy_of(why, "reinstall")
    assert import_check.remedy_of("No module named 'x'", "reinstall") == "reinstall"


def test_a_torchvision_of_the_registry_beside_another_pytorch() -> None:
    """Such as 2.13.0+cpu, whose version would do: to install it again would not help."""
    why = "RuntimeError: operator torchvision::nms does not exist"
    assert import_check.remedy_of(why, "reinstall").endswith("from where torch came")


# ------------------------------------------------------------------------------ the whole


def test_backends_and_their_remedies(
    backends: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.decoders_base, "names", lambda: ["pil"])  # the others import torch
    report = doctor.doctor(cache_dir=tmp_path / "cache", timeout_s=30)
    checks = by_name(next(s for s in report.sections if s.title == "Backends").checks)
    assert checks["good"].status == "ok"
    assert checks["good"].detail == "version 1.2; devices a, b; with colorsys, email"
    assert checks["missing"] == doctor.Check(
        "missing", "missing", "no engine", "pip install engine"
    )
    assert checks["not-installed"].status == "missing"  # and no module of it is called broken
    assert checks["broken"].status == "broken"
    assert checks["broken"].detail == "gpubench_no_such_module cannot be imported: see above"
    runtimes = by_name(next(s for s in report.sections if s.title == "Runtimes").checks)
    cause = runtimes["gpubench_no_such_module"]  # told once, whoever needs it
    assert cause.status == "broken"
    assert "No module named" in cause.detail
    assert cause.remedy == "pip install gpubench_no_such_module"
    assert runtimes["colorsys"].detail.startswith("import ")
    assert (checks["unloadable"].status, "oops" in checks["unloadable"].detail) == ("broken", True)
    assert [c.name for c in report.broken] == ["gpubench_no_such_module", "broken", "unloadable"]
    assert json.loads(escape.document(report))["sections"][3]["title"] == "Backends"
    decoders = next(s for s in report.sections if s.title == "Decoders").checks
    assert [(check.name, check.status) for check in decoders] == [("pil", "ok")]


def test_what_is_too_old_is_neither_fine_nor_to_be_installed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = {
        name: Unavailable(f"{name} is too old", f"pip install -U {name}")
        for name in ("torch", "onnxscript")
    }
    monkeypatch.setattr(plugins, "outdated", lambda: old)
    imports = {"torch": {"error": "libcublas"}, "numpy": {"version": "2.4", "seconds": 0.1}}
    checks = by_name(doctor._runtimes(imports))
    assert {name: check.status for name, check in checks.items()} == {
        "torch": "missing", "numpy": "ok", "onnxscript": "missing",
    }  # fmt: skip
    assert checks["torch"].remedy == "pip install -U torch"


def test_a_decoder_on_a_device_is_not_there_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.decoders_base, "names", lambda: ["pil", "nvjpeg"])
    imports = {key: {"version": "1", "seconds": 0.5} for key in ("torch", "torchvision", "PIL")}
    with_one = by_name(doctor._decoders(imports, 30, cuda=True))
    assert {check.status for check in with_one.values()} == {"ok"}
    without = by_name(doctor._decoders(imports, 30, cuda=False))
    assert without["pil"] == with_one["pil"]
    assert without["nvjpeg"].status == "note"
    assert without["nvjpeg"].detail == "decodes on a CUDA device, and none is visible"


def test_render_cuts_nothing_and_takes_text_literally() -> None:
    from rich.console import Console

    remedy = "install " + "-".join("abcdefgh" for _ in range(30)) + " [bold]now[/bold]"
    check = doctor.Check("name [red]", "missing", "because [/x]", remedy)
    report = doctor.Report([doctor.Section("Title", [check])], {})
    out = io.StringIO()
    Console(file=out, width=60).print(report)
    flat = "".join(out.getvalue().split())
    assert remedy.replace(" ", "") in flat
    assert "name[red]" in flat
    assert "because[/x]" in flat


# ------------------------------------------------------------------------------ one by one


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ((), {}),
        (("avx2", "fma"), {}),
        (("avx512_bf16", "avx512_vnni"), {"bf16": "avx512_bf16", "int8": "avx512_vnni"}),
        (("amx_bf16", "amx_int8"), {"bf16": "amx_bf16", "int8": "amx_int8"}),
        (("asimdhp", "bf16", "i8mm"), {"bf16": "bf16", "int8": "i8mm", "fp16": "asimdhp"}),
    ],
)
def test_cpu_features(flags: tuple[str, ...], native: dict[str, str]) -> None:
    checks = by_name(doctor.cpu_features(flags))
    for precision in ("bf16", "int8", "fp16"):
        check = checks[f"CPU {precision}"]
        assert (check.status == "ok") is (precision in native)
        assert not native.get(precision) or f"native: {native[precision]}" in check.detail
        assert ("matrix unit" in check.detail) is native.get(precision, "").startswith("amx")


def test_no_gpu_says_why(machine: Path) -> None:
    (check,) = doctor._gpus(facts(), {})
    assert (check.status, "no driver" in check.detail) == ("note", True)
    (check,) = doctor._gpus(facts(variables={"CUDA_VISIBLE_DEVICES": ""}), {})
    assert "CUDA_VISIBLE_DEVICES=''" in check.detail
    assert check.remedy.startswith("unset CUDA_VISIBLE_DEVICES")
    vendor = machine / "sys/bus/pci/devices/0000:01:00.0/vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x10de\n")
    (check,) = doctor._gpus(facts(), {})
    assert (check.status, "on the PCI bus" in check.detail) == ("missing", True)
    version = machine / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM")
    (check,) = doctor._gpus(facts(), {})
    assert "--gpus all" in check.remedy


def test_wsl_has_the_driver_of_windows_or_none(machine: Path) -> None:
    here = facts(os={"name": "Ubuntu", "kernel": "5.15.167.4-microsoft-standard-WSL2"})
    (check,) = doctor._gpus(here, {})
    assert (check.status, "no driver of Windows'" in check.detail) == ("note", True)
    assert check.remedy.startswith("install NVIDIA's driver in Windows")
    library = machine / "usr/lib/wsl/lib/libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    (check,) = doctor._gpus(here, {})
    assert (check.status, check.remedy[:43]) == (
        "missing", "export LD_LIBRARY_PATH=/usr/lib/wsl/lib, un",
    )  # fmt: skip
    assert [c.name for c in doctor._kind(here)] == ["WSL 2"]
    assert list(doctor._kind(facts())) == []
    (check,) = doctor._kind(facts(cpu={"machine": "aarch64"}))
    assert "CUDA from glibc 2.34 on" in check.detail


@pytest.mark.parametrize(
    ("torch", "status", "words"),
    [
        ({"cuda_build": "13.0", "cuda_available": True}, "ok", "works, built for CUDA 13.0"),
        ({"cuda_build": None, "cuda_available": False}, "broken", "without CUDA"),
        ({"cuda_build": "13.2", "cuda_available": False}, "broken", "driver supports CUDA 13.0"),
    ],
)
def test_gpu_and_torch(torch: dict[str, Any], status: str, words: str) -> None:
    here = facts(gpus=[GPU], libraries={"nvidia-cudnn-cu13": "9.26", "torch": "2.15"})
    checks = by_name(doctor._gpus(here, {"torch": torch}))
    assert checks["GPU 0"].detail.startswith("H100, 80.0 GiB, compute capability 9.0")
    assert "580.1" in checks["driver"].detail
    assert checks["cudnn"].detail == "nvidia-cudnn-cu13 9.26"
    assert checks["cuda-runtime"].status == "note"
    assert checks["torch on CUDA"].status == status
    assert words in checks["torch on CUDA"].detail


def test_torch_that_does_not_import_is_not_judged_twice() -> None:
    imports = {"torch": {"error": "x"}}
    assert "torch on CUDA" not in by_name(doctor._gpus(facts(gpus=[GPU]), imports))


def test_an_onnxruntime_without_cuda_beside_a_gpu() -> None:
    """Installed for CPUs, or on top of the build for CUDA, whose files it has overwritten."""
    for providers, missing in ((["CPU"], True), ([CUDA, "CPU"], False)):
        imports = {"onnxruntime": {"providers_built_in": providers}}
        checks = by_name(doctor._gpus(facts(gpus=[GPU]), imports))
        assert ("onnxruntime on CUDA" in checks) is missing
    assert "onnxruntime on CUDA" not in by_name(doctor._gpus(facts(gpus=[GPU]), {}))


def test_builds_of_onnxruntime_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr(plugins, "builds", lambda _: both)
    check = by_name(doctor._runtimes({}))["ONNX Runtime"]
    assert check.status == "warn"
    assert check.remedy.startswith("pip uninstall onnxruntime onnxruntime-gpu, then install")
    monkeypatch.setattr(plugins, "builds", lambda _: both[:1])
    assert "ONNX Runtime" not in by_name(doctor._runtimes({}))


def test_the_energy_of_a_cpu_is_counted_locked_or_not_there(machine: Path) -> None:
    assert doctor._energy().status == "note"
    zone(machine, "intel-rapl:0", "package-0", 5)
    zone(machine, "intel-rapl:0:0", "dram", 5)
    assert doctor._energy() == doctor.Check("CPU energy", "ok", "1 package, counted by RAPL")
    (zone(machine, "intel-rapl:1", "package-1", 5) / "energy_uj").unlink()
    found = doctor._energy()
    assert found.status == "missing"
    assert found.detail.startswith("2 packages; only root may read")
    assert "chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj" in found.remedy
    sensor(machine, "0040", VDD_IN=(5000, 2000))
    detail = "of the module with its GPU: VDD_IN, by its INA3221 sensors"
    assert doctor._energy() == doctor.Check("energy", "ok", detail)


def test_noise_of_a_quiet_machine(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 5.0, 5.0))
    (machine / "proc").mkdir()
    (machine / "proc/stat").write_text("cpu  10 0 10 80 0 0 0 0 0 0\n")
    assert {c.status for c in doctor._noise(facts())} == {"ok"}


def test_noise_of_a_bad_machine(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    (machine / "proc").mkdir()
    (machine / "proc/stat").write_text("cpu  10 0 10 75 0 0 0 5 0 0\n")
    bad = facts(
        cpu={"logical": 4, "usable": 4, "governor": "powersave", "turbo": True},
        limits={"cpus": 1.5},
        virtualisation={"hypervisor": True},
        gpus=[GPU],
    )
    checks = by_name(doctor._noise(bad))
    warned = {"load", "virtual machine", "CPU governor", "CPU limit", "GPU 0 persistence"}
    assert {name for name, check in checks.items() if check.status == "warn"} == warned
    assert "5.0 %" in checks["virtual machine"].detail
    assert "1.5 CPUs" in checks["CPU limit"].detail
    assert all(checks[name].remedy for name in warned)


def test_advice_on_a_gpu_names_it_whatever_is_visible() -> None:
    """By UUID, for `nvidia-smi` counts all; the GPU of a slice by its bus."""
    whole = by_name(doctor._gpu_noise(GPU | {"uuid": "GPU-b", "clocks": None}))
    assert whole["GPU 0 clocks"].remedy.startswith("sudo nvidia-smi -i GPU-b -lgc")
    assert whole["GPU 0 persistence"].remedy == "sudo nvidia-smi -i GPU-b -pm 1"
    slice_ = GPU | {"uuid": "MIG-1", "mig": True, "pci_bus_id": "0:65:0"}
    assert "-i 0:65:0 -lgc" in by_name(doctor._gpu_noise(slice_))["GPU 0 clocks"].remedy
    assert "GPU 0 clocks" not in by_name(doctor._gpu_noise(GPU | {"clocks": "application"}))
    bad = {"power_cap_w": 300.0, "power_default_w": 700.0, "pcie_width": 8, "pcie_width_max": 16,
           "mps": {"active_thread_percentage": 50.0}}  # fmt: skip
    found = by_name(doctor._gpu_noise(GPU | bad))
    assert "300 W, by default 700 W" in found["GPU 0 power limit"].detail
    assert "x8 of x16" in found["GPU 0 bus"].detail
    assert "MPS, 50 % each" in found["GPU 0 MPS"].detail


def test_compiler_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "clang++").touch(mode=0o755)
    assert doctor._compiler().remedy.startswith("apt-get install g++"), "inductor takes no other"
    mine = tmp_path / "my-c++"
    monkeypatch.setenv("CXX", str(mine))
    assert f"there is no {mine} on PATH" in doctor._compiler().detail
    mine.touch(mode=0o755)
    assert doctor._compiler() == doctor.Check("C++ compiler", "ok", str(mine))


def test_a_cache_others_may_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (check,) = doctor._cache(tmp_path)
    assert check.status == "broken"
    assert "--cache-dir" in check.remedy


def test_a_cache_on_a_disk_of_another_machine(machine: Path, tmp_path: Path) -> None:
    (machine / "proc/self").mkdir(parents=True)
    home = tmp_path / "home/me"
    home.mkdir(parents=True)
    (machine / "proc/self/mountinfo").write_text(
        "22 1 0:21 / / rw shared:1 - ext4 /dev/vda rw\n"
        f"23 1 0:50 / {home.parent} rw shared:2 - nfs4 server:/home rw,vers=4.2\n"
    )
    _, check = doctor._cache(home / "cache")
    assert (check.status, check.detail[:8]) == ("warn", "on nfs4:")
    assert len(doctor._cache(tmp_path / "cache")) == 1


ENDED = """
import signal, subprocess, threading
from types import SimpleNamespace
from gpubench.run import doctor

both, ended = threading.Barrier(2), []

def tried(group, timeout_s):
    with subprocess.Popen(["sleep", "100"]) as child:
        if not both.wait():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    ended.append(child.returncode)
    return {}

class Registry:
    def names(self):
        return ["a", "b"]

    def get(self, name):
        return SimpleNamespace(name=name, preload=(name,), probe=dict)

doctor.try_imports = tried
try:
    doctor._registered(Registry(), {}, 1.0)
except KeyboardInterrupt:
    [t.join() for t in threading.enumerate() if t is not threading.main_thread()]
    print(ended)
"""


def test_ending_it_ends_the_imports_that_it_tries() -> None:
    """In a process of its own: all that have it as a parent are ended."""
    done = subprocess.run([sys.executable, "-c", ENDED], capture_output=True, text=True,
                          timeout=60, check=True)  # fmt: skip
    assert done.stdout == "[-9, -9]\n"
