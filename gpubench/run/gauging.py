"""A worker's answers about limits: the work in an image, and what a device can do at best."""

from __future__ import annotations

import os
from pathlib import Path

from gpubench.run.messages import Count, Counted, Gauge, Gauged


def answer(request: Count | Gauge, cache_dir: str) -> Counted | Gauged:
    """Raises what counting raises (InputError), or torch."""
    return _count(request, cache_dir) if isinstance(request, Count) else _gauge(request)


def _count(request: Count, cache_dir: str) -> Counted:
    from gpubench.workload import models, work
    from gpubench.workload.cache import Cache

    cache = Cache(Path(cache_dir))
    return Counted(work.of(models.resolve(request.workload, cache), cache))


def _gauge(request: Gauge) -> Gauged:
    from gpubench.measure import peaks

    if request.device == "cuda":
        if request.uuid.startswith("MIG-"):  # as in `gpubench.run.worker`
            os.environ["CUDA_VISIBLE_DEVICES"] = request.uuid
        return Gauged(*peaks.cuda(request.types, request.memory))
    return Gauged(*peaks.cpu(request.cores, request.types, request.memory))
