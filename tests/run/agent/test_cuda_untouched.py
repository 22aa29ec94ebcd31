"""Nothing touches CUDA in the driver, the agent or the fork server: seen by a driver of our own.

Two shared libraries stand where NVIDIA's would: an NVML that shows one GPU, so that everything
takes this machine for one with CUDA, and a CUDA driver that writes down who calls it, and has no
device.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CUDA = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>
static int told(const char *call) {
    char words[4096] = {0}, line[4300];
    int fd = open("/proc/self/cmdline", O_RDONLY), n = read(fd, words, sizeof words - 1);
    close(fd);
    for (int i = 0; i < n; i++) if (!words[i]) words[i] = ' ';
    const char *who = "driver";
    if (strstr(words, "multiprocessing.forkserver"))
        who = getpgrp() == getpid() ? "worker" : "fork server";  // a worker leads its own group
    else if (strstr(words, "gpubench.run.agent import main")) who = "agent";
    n = snprintf(line, sizeof line, "%s: %s\n", who, call);
    fd = open(getenv("GPUBENCH_STUB_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (write(fd, line, n) != n) abort();
    close(fd);
    return 100;  // CUDA_ERROR_NO_DEVICE
}
extern "C" {
int cuInit(unsigned) { return told("cuInit"); }
int cuDeviceGetCount(int *n) { *n = 0; return told("cuDeviceGetCount"); }
int cuDriverGetVersion(int *v) { *v = 13020; told("cuDriverGetVersion"); return 0; }
static int other() { return told("another function"); }
static void *find(const char *name) {
    return !strcmp(name, "cuInit") ? (void *)cuInit
        : !strcmp(name, "cuDeviceGetCount") ? (void *)cuDeviceGetCount
        : !strcmp(name, "cuDriverGetVersion") ? (void *)cuDriverGetVersion : (void *)other;
}
int cuGetProcAddress(const char *s, void **f, int, unsigned long long) {
    told("cuGetProcAddress"); *f = find(s); return 0; }
int cuGetProcAddress_v2(const char *s, void **f, int, unsigned long long, void *) {
    told("cuGetProcAddress"); *f = find(s); return 0; }
}
"""
NVML = r"""
#include <cstdio>
#include <cstring>
static int text(char *to, const char *words) { strcpy(to, words); return 0; }
extern "C" {
int nvmlInit_v2() { return 0; }
int nvmlInitWithFlags(unsigned) { return 0; }
int nvmlShutdown() { return 0; }
const char *nvmlErrorString(int) { return "not supported"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned, void **h) { *h = (void *)1; return 0; }
int nvmlDeviceGetHandleByUUID(const char *, void **h) { *h = (void *)1; return 0; }
int nvmlDeviceGetUUID(void *, char *to, unsigned) {
    return text(to, "GPU-00000000-0000-0000-0000-000000000001"); }
int nvmlDeviceGetName(void *, char *to, unsigned) { return text(to, "Stub"); }
int nvmlDeviceGetCudaComputeCapability(void *, int *a, int *b) { *a = 9; *b = 0; return 0; }
int nvmlDeviceGetPciInfo_v3(void *, void *p) { return text((char *)p, "0000:65:00.0"); }
int nvmlSystemGetDriverVersion(char *to, unsigned) { return text(to, "580.65"); }
int nvmlSystemGetCudaDriverVersion(int *v) { *v = 13020; return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 13020; return 0; }
}
"""
DRIVER = r"""
import importlib.util, json, sys
from contextlib import suppress
from pathlib import Path
from gpubench import plugins
from gpubench.backends import base
from gpubench.errors import GpubenchError
from gpubench.machine import environment
from gpubench.pipeline.decoders import base as decoders
from gpubench.run.agent import messages
from gpubench.run.agent.client import AgentClient

if __name__ == "__main__":
    folder, *more = sys.argv[1:]
    assert [gpu["name"] for gpu in environment.collect([])["gpus"]] == ["Stub"]
    sources = "gpubench.models"
    parts = [r.get(name) for r in (base, decoders) for name in r.names()]
    for part in parts:
        with suppress(GpubenchError):
            part.probe()
    parts += [plugins.get(sources, name) for name in plugins.names(sources)]
    wanted = dict.fromkeys(module for part in parts for module in part.preload)
    here = [m for m in wanted if importlib.util.find_spec(m.partition(".")[0])]
    with AgentClient([*here, *more], Path(folder) / "cache", Path(folder) / "log") as agent:
        told = agent.start()
        reply = agent.ask(messages.Gauge("cuda", (), ("fp32",), False))
        print(json.dumps({"here": here, "errors": told.errors, "reply": repr(reply)}))
"""
PLANTED = "import torch\ntorch.cuda.init()\n"


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (compiler := shutil.which("g++")):
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("stubs")
    for name, source in (("libcuda.so.1", CUDA), ("libnvidia-ml.so.1", NVML)):
        made = [compiler, "-shared", "-fPIC", "-xc++", "-", "-o", str(folder / name)]
        subprocess.run([*made, f"-Wl,-soname,{name}"], input=source, text=True, check=True)
    return folder


@pytest.mark.slow
def test_only_workers_touch_cuda_whatever_is_preloaded(stubs: Path, tmp_path: Path) -> None:
    for planted in ([], ["gpubench_touches_cuda"]):
        calls, told = _run(stubs, tmp_path, planted)
        assert {"torch", "torchvision", "onnxruntime", "torch._dynamo"} <= {*told["here"]}
        assert told["errors"].keys() <= {*planted}
        assert "CUDA" in told["reply"], "the worker did not get as far as asking for a device"
        assert {c.partition(":")[0] for c in calls} == {"fork server" if planted else "worker"}


def _run(stubs: Path, folder: Path, modules: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    (folder / "gpubench_touches_cuda.py").write_text(PLANTED)
    (folder / "driver.py").write_text(DRIVER)
    (folder / "calls").write_text("")
    libraries = f"{stubs}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    environ = os.environ | {
        "LD_LIBRARY_PATH": libraries, "GPUBENCH_STUB_LOG": str(folder / "calls"),
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}",
    }  # fmt: skip
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, str(folder / "driver.py"), str(folder), *modules],
        env=environ, stdout=subprocess.PIPE, text=True, check=True, timeout=300,
    )  # fmt: skip
    return (folder / "calls").read_text().splitlines(), json.loads(done.stdout.splitlines()[-1])
