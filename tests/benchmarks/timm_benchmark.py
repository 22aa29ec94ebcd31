"""timm's own benchmark.py and gpubench, side by side: `python -m tests.benchmarks.timm_benchmark`.

benchmark.py is in timm's repository and not in its wheel: its path is the argument. Its
`InferenceBenchmarkRunner` and our worker each hold the network in a process of their own, with the
same cores, threads and memory format, in fp32 and inference mode, and take turns (ABBA and BAAB, as
in an A/B): a turn is one `run()` of theirs, a turn of ours whatever our loop does in one. Theirs
are the images/s that it prints, ours those of our record, both the median of several turns, of
which others' work on the machine hits some; their ratio, by pairs of which each has fresh processes
on both sides, with the interval of Hodges & Lehmann at 95 %.

What a process allocates lies elsewhere in each, and so the C library of some gives the memory of a
batch back to the kernel and takes it anew for the next one: page faults a batch are kept of both.
MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_, which both sides inherit, end that.

benchmark.py is told --use-train-size, since it takes a network's larger test size otherwise
(ResNet-18: 288 pixels, not 224), and gpubench the size that the network is built for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from math import exp, log
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from gpubench import __version__
from gpubench.analysis.compare import signed_rank
from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.machine.environment import cpu_model
from gpubench.records import samples
from gpubench.run.ab.pair_runner import sequence
from gpubench.run.agent import messages
from gpubench.run.agent.client import AgentClient
from gpubench.suite.types import Cell, Policy

MODELS = ("resnet18", "vit_tiny_patch16_224", "mobilenetv4_conv_small")
TURNS, WARM, LEAST = 8, 2, 6
"""Of each arm in a pair; iterations of theirs before a turn; in it at least."""
REACH = 0.02
FAULTS = 500
"""A batch: 2 MB that the kernel clears and maps, which takes it a millisecond."""
THEIRS = """
import importlib.util, json, resource, sys
path, model, size, layout, cores = json.loads(sys.argv[1])
import os
os.sched_setaffinity(0, cores)
spec = importlib.util.spec_from_file_location("benchmark", path)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)
runner = benchmark.InferenceBenchmarkRunner(
    model_name=model, device="cpu", batch_size=size, channels_last=layout == "channels_last",
    use_train_size=True, gp=None,  # as its command line has it, where --gp is not given
)
print(json.dumps(benchmark.torch.get_num_threads()), flush=True)
for line in sys.stdin:
    runner.num_warm_iter, runner.num_bench_iter = json.loads(line)
    runner.log_freq = runner.num_bench_iter
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rate = runner.run()["samples_per_sec"]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(json.dumps([rate, faults / (runner.num_warm_iter + runner.num_bench_iter)]), flush=True)
"""


class Theirs:
    """A process that holds timm's runner."""

    def __init__(self, *words: Any, threads: int) -> None:
        """``words``: path of benchmark.py, model, batch size, memory format, cores."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", THEIRS, json.dumps(words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        if (found := self._told()) != threads:
            raise RuntimeError(f"timm has {found} threads, not {threads}")

    def _told(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def turn(self, warm: int, count: int) -> list[float]:
        """Images/s of ``count`` iterations, as `run` says them, and page faults of a batch."""
        assert self._process.stdin is not None
        print(json.dumps([warm, count]), file=self._process.stdin, flush=True)
        return self._told()

    def close(self) -> None:
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid


def pair(
    agent: AgentClient, theirs: Theirs, request: messages.Measure, seconds: float, seed: str
) -> dict[str, float]:
    """Our images/s / timm's, of as many turns of each, and page faults of a batch of both."""

    def step(turns: int = 0) -> messages.Reply:
        return agent.ask(messages.Step("ours", [theirs.pid], request.policy.timeout_s, turns))

    agent.ask(messages.Begin("ours", request))
    warm = step()
    assert isinstance(warm, messages.Waiting), warm
    count = max(LEAST, round(seconds * 1e9 / warm.batch_ns))
    theirs.turn(WARM, LEAST)
    told = []
    draw = random.Random(seed)
    for letter in sequence(TURNS, draw.choice("AB"), draw):
        if letter == "A":
            told.append(theirs.turn(WARM, count))
        else:
            assert isinstance(reply := step(TURNS), messages.Waiting), reply
    done = step()
    assert isinstance(done, messages.Done), done
    size = request.cell.batch_size
    ours = [sum(samples.rates(visit, size)) for visit in done.record.visits]
    visits = [visit for replicas in done.record.visits for visit in replicas]
    rates, faults = zip(*told, strict=True)
    return {
        "ratio": median(ours) / median(rates),
        "faults": sum(v.page_faults for v in visits) / sum(sum(v.batches) for v in visits),
        "their_faults": median(faults),
    }


@contextmanager
def prepared(cell: Cell, policy: Policy, cores: tuple[int, ...]) -> Iterator[Any]:
    """A running agent, and what it is asked to measure."""
    cache = Cache()
    with (
        TemporaryDirectory() as folder,
        AgentClient([*base.get(cell.backend).preload], cache.root, Path(folder, "log")) as agent,
    ):
        agent.start()
        reference = agent.ask(messages.BuildReference(cell.workload, policy))
        artefact = agent.ask(messages.Prepare(cell, cores, 600))
        assert isinstance(reference, messages.Prepared), reference
        assert isinstance(artefact, messages.Prepared), artefact
        yield (
            agent,
            messages.Measure(cell, policy, artefact.path, reference.path, [cores], turns=TURNS),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", type=Path, help="timm's benchmark.py")
    parser.add_argument("models", nargs="*", default=MODELS, help="as timm calls them")
    parser.add_argument("--batch-size", default="1,8")
    parser.add_argument("--memory-format", default="contiguous")
    parser.add_argument("--cores", default=str(sorted(os.sched_getaffinity(0))[0]))
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--turn", type=float, default=0.15, help="seconds")
    parser.add_argument("-o", "--output", type=Path, help="JSON; goes on where it was")
    given = parser.parse_args()
    cores = tuple(int(core) for core in given.cores.split(","))
    policy = Policy(
        duration_s=TURNS * given.turn, warmup_s=0.2, parity_images=8, max_samples=100_000
    )
    kept = json.loads(given.output.read_text()) if given.output and given.output.exists() else {}
    kept |= {
        "cpu": cpu_model(), "cores": cores, "memory_format": given.memory_format,
        "date": f"{datetime.now(tz=UTC):%Y-%m-%d}", "gpubench": __version__,
        "versions": {name: version(name) for name in ("torch", "timm")},
        "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
    }  # fmt: skip
    for model in given.models:
        for size in map(int, given.batch_size.split(",")):
            pairs = kept.setdefault("pairs", {}).setdefault(f"{model} b{size}", [])
            cell = Cell(
                backend="torch-eager", device="cpu", model=f"timm/{model}", weights="random",
                images="synthetic", precision="fp32", batch_size=size, replicas=1,
                cores=len(cores), scenario="throughput", boundary="compute",
                options={"memory_format": given.memory_format},
            )  # fmt: skip
            while len(pairs) < given.pairs:
                theirs = Theirs(
                    str(given.benchmark), model, size, given.memory_format, cores,
                    threads=len(cores),
                )  # fmt: skip
                with prepared(cell, policy, cores) as (agent, request):
                    seed = f"{model}/{size}/{len(pairs)}"
                    pairs.append(pair(agent, theirs, request, given.turn, seed))
                theirs.close()
                if given.output:
                    given.output.write_text(json.dumps(kept, indent=1) + "\n")
            ratios = [pair["ratio"] for pair in pairs]
            middle, low, high = (
                x and exp(x) for x in signed_rank.around([log(r) for r in ratios], 0.95)
            )
            bounds = f"({low:.4f} to {high:.4f})" if low and high else "(too few pairs)"
            agree = "within 2 %" if abs((middle or 0) - 1) <= REACH else "NOT within 2 %"
            faults = [sum(pair[of] > FAULTS for pair in pairs) for of in ("faults", "their_faults")]
            print(f"{model} b{size}: ours / timm's {middle:.4f} {bounds}, {len(ratios)} pairs: "
                  f"{agree}; with page faults in each batch {faults[0]} of ours, {faults[1]} of "
                  "timm's", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
