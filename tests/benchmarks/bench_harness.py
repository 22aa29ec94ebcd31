"""What the harness itself costs: against a bare loop, per iteration, and per task."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.measure import protocol
from gpubench.measure.loop import sample
from gpubench.run.agent.client import AgentClient
from gpubench.run.agent.messages import BuildReference, Done, Measure, Prepare, Prepared, Progress
from gpubench.suite.types import Policy, Workload
from gpubench.workload.models import builder, registry
from tests.measure.virtual import make_cell

Figure = Callable[[str, float, float], None]


def test_batch_1_median_against_a_bare_loop(figure: Figure) -> None:
    """ResNet-18 on torch-eager: 60 interleaved pairs of ten iterations, ratio of the medians."""
    import torch

    cell = make_cell(backend="torch-eager", weights="random", cores=1)
    cache = Cache()
    backend = base.get("torch-eager")
    artefact = backend.prepare(cell, registry.resolve(cell.workload, cache), cache)
    module = builder.load_module(artefact)
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    tensor = torch.from_numpy(images)
    ratios = []
    with backend.open(cell, artefact, base.Device("cpu", 0, (0,))) as session:
        session.copy_in(images)
        sampler = protocol.warm_up(session, images, cell, Policy())
        for pair in range(60):
            arms = [_bare(torch, module, tensor), _ours(sampler)]
            bare, ours = (arm() for arm in (arms if pair % 2 else arms[::-1]))
            bare, ours = (bare, ours) if pair % 2 else (ours, bare)
            ratios.append(ours / bare)
    print(f"\nratio: median {median(ratios):.4f}, pairs {len(ratios)}")
    figure("|median ratio - 1|", abs(median(ratios) - 1), 0.01)


def _bare(torch: Any, module: Any, tensor: Any) -> Callable[[], float]:
    def arm() -> float:
        times = []
        with torch.inference_mode():
            for _ in range(10):
                begin = perf_counter_ns()
                module(tensor)
                times.append(perf_counter_ns() - begin)
        return median(times)

    return arm


def _ours(sampler: protocol.Sampler) -> Callable[[], float]:
    policy = Policy(duration_s=1e-9, max_samples=10)

    def arm() -> float:
        times: list[int] = []
        while len(times) < 10:
            times += protocol.measure(sampler, policy).durations_ns
        return median(times)

    return arm


def test_added_per_iteration(figure: Figure) -> None:
    """Wall time of the loop over the null backend, per iteration: nothing in it is work."""
    cell = make_cell(backend="null", weights="random")
    backend, cache = base.get("null"), Cache()
    artefact = backend.prepare(cell, registry.resolve(cell.workload, cache), cache)
    with backend.open(cell, artefact, base.Device("cpu", 0, ())) as session:
        enqueue, finish = protocol.steps(session, np.zeros((1, 3, 4, 4), np.float32), cell)
        costs = []
        for _ in range(20):
            begin = perf_counter_ns()
            trace = sample(
                enqueue, finish, iterations=1, seconds=0, at_least=20_000, at_most=20_000
            )
            costs.append((perf_counter_ns() - begin) / len(trace.durations))
    figure("microseconds", median(costs) / 1e3, 3.0)


def test_dispatch_to_first_warm_up_iteration(figure: Figure, tmp_path: Path) -> None:
    """ResNet-18 on torch-eager, cached, agent warm: from asking to the barrier before warm-up."""
    cell = make_cell(backend="torch-eager", weights="random", images="synthetic", cores=1)
    policy = Policy(duration_s=0.1, warmup_s=0.05)
    modules = list(base.get("torch-eager").preload)
    times = []
    with AgentClient(modules, Cache().root, tmp_path / "agent.log") as agent:
        agent.start()
        workload = Workload(model="resnet18", weights="random", images="synthetic")
        reference = agent.ask(BuildReference(workload, policy))
        artefact = agent.ask(Prepare(cell, (0,), 600))
        assert isinstance(reference, Prepared)
        assert isinstance(artefact, Prepared)
        request = Measure(cell, policy, artefact.path, reference.path, [(0,)])
        for _ in range(7):
            begin = time.monotonic()

            def opened(progress: Progress, begin: float = begin) -> None:
                if progress.step == "opened":
                    times.append(time.monotonic() - begin)

            assert isinstance(agent.ask(request, opened), Done)
    figure("seconds", median(times), 1.0)


def test_help_against_its_libraries(figure: Figure) -> None:
    """`gpubench --help` against `import click, rich`, in turn; ratio of the medians."""
    commands = {
        "help": [sys.executable, "-c", "import sys; sys.argv[1:] = ['--help']; "
                 "from gpubench.cli.main import main; main()"],
        "bare": [sys.executable, "-c", "import click, rich"],
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(15):
        for name, command in commands.items():
            begin = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.monotonic() - begin)
    figure("ratio", median(times["help"]) / median(times["bare"]), 2.0)
