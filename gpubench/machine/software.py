"""Which software a machine has: versions, settings in its environment, commits."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from gpubench import escape

LIBRARIES = re.compile(
    r"(torch|torchvision|triton|numpy|onnx|onnxscript|onnxruntime|openvino|nncf|tensorrt"
    r"|nvidia-(cuda-runtime|cudnn|cublas|cuda-nvrtc))(-.*)?"
)

VARIABLES = re.compile(
    r"(OMP|KMP|GOMP|MKL|OPENBLAS|BLIS|ONEDNN|DNNL|CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|TORCH|TORCHINDUCTOR"
    r"|PYTORCH|TRITON|ORT|OV|OPENVINO|TRT|MALLOC|TBB)_\w+"
    r"|LD_PRELOAD|LD_LIBRARY_PATH|PYTHONHASHSEED|PYTHONMALLOC"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
CREDENTIALS_IN_URL = re.compile(r"//[^/\s@]+@")
OUTER = ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "PYTHONPATH", "PYTHONHOME")
"""Variables that would lead into the environment of whoever runs us."""


def libraries() -> dict[str, str]:
    """Versions of the installed packages that take part in computing."""
    found = {
        re.sub(r"[-_.]+", "-", str(d.metadata["Name"] or "")).lower(): d.version
        for d in distributions()
    }
    return {name: found[name] for name in sorted(found) if LIBRARIES.fullmatch(name)}


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that change how fast things run; never one that may hold a secret."""
    return {
        name: escape.visible(CREDENTIALS_IN_URL.sub("//***@", value))
        for name, value in sorted(environ.items())
        if VARIABLES.fullmatch(name) and not SECRET.search(name)
    }


def environ_of_another() -> dict[str, str]:
    """Our environment variables for another interpreter, less those that lead into ours."""
    return {key: value for key, value in os.environ.items() if key not in OUTER}


def commit(directory: Path, *, own: bool = False) -> dict[str, Any]:
    """Commit and whether tracked files differ from it; None outside a repository.

    ``own``: only where git tracks gpubench there, and not some project that it is installed in.
    """
    if own and _git(directory, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    head = _git(directory, "rev-parse", "HEAD")
    status = _git(directory, "status", "--porcelain", "--untracked-files=no") if head else None
    return {"commit": head, "dirty": None if status is None else bool(status)}


def _git(directory: Path, *words: str) -> str | None:
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *words],
            capture_output=True,
            text=True,
            timeout=5,
            env=quiet,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
