"""Which software a machine has: versions, settings in its environment, commits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from gpubench import escape

LIBRARIES = re.compile(
    r"(torch|torchvision|triton|numpy|onnx|onnxscript|onnxruntime|openvino|nncf|tensorrt"
    r"|nvidia-(cuda-runtime|cudnn|cublas|cuda-nvrtc))(-.*)?"
)

SETTINGS = re.compile(
    r"(OMP|KMP|GOMP|MKL|OPENBLAS|GOTO|BLIS|ONEDNN|DNNL|ATEN|NPY|TBB|JSIMD|PILLOW"
    r"|MALLOC|_RJEM_MALLOC|MIMALLOC|TCMALLOC)_\w+"
    r"|GLIBC_TUNABLES|LD_(BIND_NOW|DEBUG|PROFILE|HWCAP_MASK)"
    r"|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|MODULE_LOADING)"
    r"|PYTORCH_(CUDA_)?ALLOC_CONF|NVIDIA_(VISIBLE_DEVICES|TF32_OVERRIDE)"
    r"|PYTHON(HASHSEED|MALLOC|TRACEMALLOC|DEVMODE|OPTIMIZE|PERFSUPPORT|PROFILEIMPORTTIME"
    r"|ASYNCIODEBUG|MALLOCSTATS|_GIL|_JIT|_CPU_COUNT)"
)
"""Variables of numeric libraries, allocators and Python itself: what they say is recorded."""
LIBRARY_PATHS = ("LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH")
SERVICES = re.compile(
    r"(CUDA|CUDNN|CUBLAS|CUBLASLT|NVIDIA|NCCL|TORCH|TORCHINDUCTOR|TORCHDYNAMO|PYTORCH|TRITON|ORT"
    r"|OV|OPENVINO|TRT|DALI)_\w+"
)
"""Variables of larger programs, which might hold anything: recorded in full if it is a `SWITCH`."""
SWITCH = re.compile(
    r"[+-]?\d{1,12}([.,]\d{1,6})?([kmg]i?)?b?|true|false|on|off|yes|no|auto|none|default|all|any"
    r"|low|medium|high|highest|max|min|debug|info|warn(ing)?|error|latency|throughput|",
    re.IGNORECASE,
)  # fmt: skip
UNTOLD = "(set, value not recorded)"
SECRET = re.compile(
    r"KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL|AUTH|COOKIE|SIGNATURE|PRIVATE|CERT|CONN(ECTION)?_?STR|DSN"
    r"|(^|_)(PAT|SAS|SIG)(_|$)", re.IGNORECASE
)  # fmt: skip
"""In the name of a variable that is nowhere recorded, not even that it is there."""
SECRET_VALUE = re.compile(r"://|[@?\n]|[^\W_]{33,}")
"""In a value that no setting has: an address, a user's name in one, a query, a long token."""

CLUSTER_SECRET = "RAY_AUTH_TOKEN"  # noqa: S105  # the variable's name
PRIVATE = re.compile(
    rf"{CLUSTER_SECRET}|GIT_(DIR|WORK_TREE|IMPLICIT_WORK_TREE|INDEX_FILE|COMMON_DIR|PREFIX|NAMESPACE"
    r"|(ALTERNATE_)?OBJECT_DIRECTOR(Y|IES)|CONFIG|CONFIG_PARAMETERS|GRAFT_FILE|SHALLOW_FILE"
    r"|NO_REPLACE_OBJECTS|REPLACE_REF_BASE|INTERNAL_SUPER_PREFIX)"
)
"""Variables that are for this process only, such as those of a hook: they name one repository."""
OUTER = ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "PYTHONPATH", "PYTHONHOME")
"""Variables that would lead into the environment of whoever runs us."""
TRACERS = re.compile(r"COV_CORE_\w+|COVERAGE_PROCESS_\w+")
"""Variables that would have coverage trace every Python that starts, the measured ones too."""
NO_TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime: read once, at import
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers
    "DISABLE_TELEMETRY": "1",  # diffusers and others of Hugging Face
    "DO_NOT_TRACK": "1",  # the same, and whoever keeps to that convention
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What keeps libraries from reporting to their makers; what the user has set wins."""
OPENVINO_REPORTER = "openvino_telemetry"
"""OpenVINO's module for that, which has no variable; without it OpenVINO says nothing."""


def packages() -> dict[str, str]:
    """Canonical name -> version of what is installed; '' is the name of what is damaged."""
    found: dict[str, str] = {}
    for one in distributions():  # the first on the path is what is imported
        found.setdefault(canonicalize_name(str(one.metadata["Name"] or "")), one.version)
    return found


def libraries() -> dict[str, str]:
    """Versions of the installed packages that take part in computing."""
    return {name: v for name, v in sorted(packages().items()) if LIBRARIES.fullmatch(name)}


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that change how fast things run; nothing that may be a secret.

    Of libraries that the dynamic linker loads first, their file names.
    """
    found = {}
    for name, value in sorted(environ.items()):
        if name in ("LD_PRELOAD", "LD_AUDIT"):
            value = ":".join(Path(path).name for path in re.split("[: ]+", value))
        known = SETTINGS.fullmatch(name) or name in LIBRARY_PATHS
        if SECRET.search(name) or not (known or SERVICES.fullmatch(name)):
            continue
        if value != NO_TELEMETRY.get(name):
            plain = not SECRET_VALUE.search(value) if known else SWITCH.fullmatch(value)
            found[name] = escape.visible(value) if plain else UNTOLD
    return found


def no_telemetry() -> None:
    """Keep libraries from reporting to their makers; to be called before one is imported."""
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault(OPENVINO_REPORTER, None)  # type: ignore[arg-type]  # "cannot be imported"


def environ_of_another() -> dict[str, str]:
    """Our environment variables for another environment, less those that lead into ours."""
    return {key: value for key, value in _inherited().items() if key not in OUTER}


def environ_of_python(other: bool = False) -> dict[str, str]:
    """The environment variables of a Python that we start; ``other``: with packages of its own.

    It does not take modules from the working directory, which may be a stranger's; what it starts
    does not either.
    """
    own = environ_of_another() if other else _inherited()
    kept = {key: value for key, value in own.items() if not TRACERS.fullmatch(key)}
    return NO_TELEMETRY | kept | {"PYTHONSAFEPATH": "1"}


def _inherited() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not PRIVATE.fullmatch(key)}


# ------------------------------------------------------------------------------ git


def git(directory: Path, *words: str) -> list[str]:
    """The command, to be run with `environ_of_git`, of which a stranger's folder changes nothing.

    The settings in it could name programs that git would run.
    """
    safe = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
    return ["git", *safe, "-C", str(directory), *words]


def environ_of_git() -> dict[str, str]:
    """Of `git`: nothing is written, asked or fetched."""
    return _inherited() | {
        "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none",
    }  # fmt: skip


def commit(directory: Path, *, own: bool = False) -> dict[str, Any]:
    """Commit and whether tracked files differ from it; None outside a repository.

    ``own``: only where git tracks gpubench there, and not some project that it is installed in.
    Whether files differ is None too where the repository's own settings name filters, programs
    that git would run to find out.
    """
    if own and _git(directory, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    head = _git(directory, "rev-parse", "HEAD")
    names = _git(directory, "config", "--show-scope", "--name-only", "--list") if head else None
    status = None
    if names is not None and not re.search(r"^(local|worktree)\s+filter\.", names, re.M | re.I):
        # of submodules their commit only: their settings are strangers' too
        look = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
        status = _git(directory, *look)
    return {"commit": head, "dirty": None if status is None else bool(status)}


def _git(directory: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            git(directory, *words), capture_output=True, timeout=5, env=environ_of_git(),
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None
