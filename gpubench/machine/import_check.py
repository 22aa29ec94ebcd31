"""Whether a runtime can really be imported: tried in an interpreter of its own.

So that a broken, crashing or hanging one is a finding and not the end of whoever asks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpubench.machine import processes, software
from gpubench.machine.processes import signal_name

_SCRIPT = (
    f"""
import ctypes, importlib, json, sys, time
sys.modules[{software.OPENVINO_REPORTER!r}] = None
"""
    + """
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: a hanging import does not outlive who asks
def torch_facts(m):
    import torch.backends.cudnn as c
    out = {"cuda_build": m.version.cuda, "cuda_available": m.cuda.is_available()}
    return out | ({"cudnn": c.version()} if out["cuda_available"] else {})
FACTS = {
    "torch": torch_facts,
    "onnxruntime": lambda m: {"providers_built_in": m.get_available_providers()},
    "openvino": lambda m: {"devices": m.Core().available_devices},
}
for name in sys.argv[1:]:
    start = time.perf_counter()
    try:
        module = importlib.import_module(name)
        more = FACTS.get(name, lambda m: {})(module)
        out = {"version": str(getattr(module, "__version__", "")), **more}
    except BaseException as error:
        out = {"error": f"{type(error).__name__}: {error}"}
    out["seconds"] = round(time.perf_counter() - start, 2)
    print("gpubench-doctor", json.dumps([name, out]), flush=True)
"""
)

_LATE = "not done after"


def try_imports(
    modules: Sequence[str], timeout_s: float, other: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Import ``modules`` in a fresh interpreter: {module: version and facts, or 'error'}.

    ``other``: this one instead of our own.
    """
    if not modules:
        return {}
    command = [str(other or sys.executable), "-W", "ignore", "-c", _SCRIPT, *modules]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL,
            env=software.environ_of_python(other is not None), check=False,
        )  # fmt: skip
        output, why = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as error:
        output, why = error.stdout or b"", f"{_LATE} {timeout_s:g} s"
    found: dict[str, dict[str, Any]] = {}
    for line in output.decode(errors="replace").splitlines():
        if line.startswith("gpubench-doctor "):
            name, result = json.loads(line.partition(" ")[2])
            found[name] = result
    return {name: found.get(name, {"error": why}) for name in modules}


def remedy_of(why: str, otherwise: str) -> str:
    """What to do where an import failed: a machine may be too busy for it, no library maps more
    addresses than a limit allows, and each torchvision is built for one PyTorch."""
    if _LATE in why:
        return "stop what else is running, and try again; if it hangs then too, reinstall it"
    if "operator torchvision::" in why:
        return "it is built for another PyTorch: install torchvision from where torch came"
    limit = processes.address_limit()
    if limit is not None and "failed to map segment" in why:
        return f"it needs more addresses than `ulimit -v {limit >> 10}` allows: raise that"
    return otherwise


def _ending(code: int) -> str:
    if code >= 0:
        return f"the interpreter ended with exit code {code}"
    return f"the interpreter died with {signal_name(code) or f'signal {-code}'}"
