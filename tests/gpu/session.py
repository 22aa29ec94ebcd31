"""The first minutes on a GPU: what tells most comes first, each step bounded, all of it resumable.

    python tests/gpu/session.py --minutes 9 -o DIR

needs nothing but Python to start: what gpubench imports is there, or lies as wheels (whole, or in
parts NAME.whl.0, NAME.whl.1 ...) in the folder --wheels. The same command again goes on with what
has not ended well. DIR then holds a folder of records and a log for each step, junit.xml and
verdict.md. `--dry-run MODEL.onnx` takes every step on the CPU with the fake backend of tests/fakes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

ROOT = Path(__file__).parents[2]
LEAST_S = 5.0
"""A step is not begun with less than this."""
GRACE_S = 8.0
"""Between being asked to end, with its records written, and being made to."""
POLICY = "repeats = 1\nwarmup_s = 0.2\nduration_s = 0.5\nblock_s = 0.1\nparity_images = 16\n"
NETWORK = '[workload]\nmodel = "resnet50"\nweights = "random"\nimages = "synthetic"\n'
SIZES = "[1, 8, 64, 256]"


def suite(axes: str, *, policy: str = POLICY, network: str = NETWORK, options: str = "") -> str:
    return f'{network}\n[axes]\ndevice = "cuda"\n{axes}\n{options}\n[policy]\n{policy}'


SUITES = {
    "nvjpeg": suite(
        'backend = "torch-eager"\nprecision = "fp16"\nbatch_size = 32\nboundary = "pipeline"\n'
        'decoder = ["pil", "nvjpeg"]\nscenario = ["throughput", "latency"]',
        network=NETWORK.replace("synthetic", "photos"),
    ),
    "resnet50": suite(
        f'backend = ["torch-eager", "torch-compile", "onnxruntime"]\nprecision = "fp16"\n'
        f'batch_size = {SIZES}\nscenario = "throughput"',
        options="[axes.options.torch-eager]\ncuda_graph = [false, true]\n"
        'memory_format = "channels_last"\n'
        '[axes.options.torch-compile]\nmemory_format = "channels_last"\n'
        "[axes.options.onnxruntime]\ncuda_graph = [false, true]\nprefer_nhwc = true",
    ),
    "tensorrt": suite(
        f'backend = ["torch-eager", "tensorrt"]\nprecision = "fp16"\nbatch_size = {SIZES}\n'
        'scenario = "throughput"',
        options="[axes.options.tensorrt]\ncuda_graph = [false, true]",
    ),
    "transfer": suite(
        'backend = ["torch-eager", "onnxruntime"]\nprecision = "fp16"\nbatch_size = 64\n'
        'boundary = ["compute", "transfer"]\nscenario = ["throughput", "latency"]',
    ),
    "energy": suite(
        'backend = "torch-eager"\nprecision = "fp16"\nbatch_size = 64\nscenario = "throughput"',
        policy=POLICY.replace("duration_s = 0.5", "duration_s = 6"),
    ),
    "aa": suite(
        'backend = "torch-eager"\nprecision = "fp16"\nbatch_size = 8\nscenario = "latency"'
    ),
}


class Step(NamedTuple):
    name: str
    limit_s: float
    command: tuple[str, ...]
    """Of gpubench; a first word 'pytest' or 'profile' is another program."""
    needs: str = ""
    """Modules of which one must be installed."""


def steps() -> list[Step]:
    """In the order of what they tell."""

    def run(name: str, limit_s: float, needs: str = "") -> Step:
        return Step(name, limit_s, ("run", f"{name}.toml", "-o", name), needs)

    return [
        Step("doctor", 60, ("doctor",)),
        Step("contract", 150, ("pytest", "tests/gpu", "--runslow", "-q", "--maxfail", "10")),
        run("nvjpeg", 60),
        run("resnet50", 180),
        run("tensorrt", 120, "tensorrt tensorrt_rtx"),
        run("transfer", 60),
        run("energy", 45),
        Step("aa", 75, ("selftest", "aa.toml", "--minutes", "1")),
        Step("profile", 45, ("profile",)),
    ]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="steps, comma-separated")
    parser.add_argument("--wheels", type=Path, help="a folder; see above")
    parser.add_argument("--dry-run", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.profile:
        return profile()
    deadline = time.monotonic() + 60 * given.minutes
    out = given.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if given.wheels:
        install(given.wheels, out / "site")
    for name, text in SUITES.items():
        (out / f"{name}.toml").write_text(dry(text, given.dry_run) if given.dry_run else text)
    kept = out / "steps.json"
    done: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    known = [step.name for step in steps()]
    wanted = given.only.split(",") if given.only else known
    if unknown := {*wanted} - {*known}:
        parser.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    for step in steps():
        if step.name not in wanted or done.get(step.name, {}).get("status") in ("ok", "skipped"):
            continue
        done[step.name] = take(step, out, deadline, bool(given.dry_run))
        kept.write_text(json.dumps(done, indent=1))
        write(done, out)
    print((out / "verdict.md").read_text())
    return int(any(each["status"] in ("failed", "timeout") for each in done.values()))


def take(step: Step, out: Path, deadline: float, is_dry: bool) -> dict[str, Any]:
    """How it ended: {status, seconds, said}."""
    left = deadline - time.monotonic() - GRACE_S
    if left < LEAST_S:
        return {"status": "left out", "seconds": 0, "said": "no time was left"}
    environ = surroundings(out)
    if step.needs and not is_dry:
        code = (
            f"import importlib.util as u; exit(not any(map(u.find_spec, {step.needs.split()!r})))"
        )
        if subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode:
            return {"status": "skipped", "seconds": 0, "said": f"none of {step.needs} is installed"}
    begin = time.monotonic()
    with (out / f"{step.name}.log").open("ab") as log:
        process = subprocess.Popen(
            line(step, out, is_dry), cwd=ROOT if step.command[0] == "pytest" else out, env=environ,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        code = ended(process, min(step.limit_s, left))
    seconds = round(time.monotonic() - begin, 1)
    counts, said = told(out / step.name)
    if code is None:
        return {"status": "timeout", "seconds": seconds, "said": said or f"{seconds:g} s"}
    broken = code != 0 or counts["failed"]
    status = "failed" if broken else "skipped" if counts and not counts["ok"] else "ok"
    last = (out / f"{step.name}.log").read_text(errors="replace").strip().splitlines()[-1:]
    return {"status": status, "seconds": seconds, "said": said or "".join(last)[:200]}


def line(step: Step, out: Path, is_dry: bool) -> list[str]:
    """Of a process."""
    first, *rest = step.command
    if first == "pytest":
        rest += ["--junitxml", str(out / "contract.xml"), *["--collect-only"] * is_dry]
        return [sys.executable, "-m", "pytest", *rest]
    if first == "profile":
        return [sys.executable, __file__, "--profile", "-o", str(out)]
    resume = (
        ["--resume"] if first == "run" and (out / step.name / "records.jsonl").is_file() else []
    )
    if is_dry:  # what is installed, but not that it can be imported; no minute of noise
        first = "schema" if first == "doctor" else first
        rest = ["0.05" if word == "1" else word for word in rest]
    return [sys.executable, "-m", "gpubench", first, *rest, *resume]


def surroundings(out: Path) -> dict[str, str]:
    paths = [str(out / "site")] * (out / "site").is_dir() + [str(ROOT)]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def ended(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """The exit code; None: it was asked to end as by Ctrl-C, and made to when it did not."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        pass
    for what in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, what)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            break
    return None


def records_of(run: Path) -> list[dict[str, Any]]:
    file = run / "records.jsonl"
    lines = map(json.loads, file.read_text().splitlines()) if file.is_file() else ()
    return [line["record"] for line in lines if "record" in line]


def told(run: Path) -> tuple[Counter[str], str]:
    """How many cells of a run there are by status; and in words, with why some failed."""
    records = records_of(run)
    counts = Counter(record["status"] for record in records)
    why = {f"{r['cell']['backend']}: {r.get('reason', '')[:120]}" for r in records
           if r["status"] == "failed"}  # fmt: skip
    words = [f"{n} {status}" for status, n in counts.most_common()]
    return counts, "; ".join([", ".join(words), *sorted(why)[:4]]) if words else ""


def rates(run: Path) -> list[str]:
    """Of the cells that were measured, by the median sample."""
    found = []
    for record in records_of(run):
        cell = record["cell"]
        for samples in record.get("replicas", ())[:1]:
            batch_ns = median(samples["durations_ns"]) / samples.get("iterations", 1)
            said = [cell[key] for key in ("backend", "precision", "boundary", "scenario")]
            said += [f"b{cell['batch_size']}", *(f"{k}={v}" for k, v in cell["options"].items())]
            rate = cell["batch_size"] * 1e9 / max(1, batch_ns)
            found.append(f"- {' '.join(said)}: {rate:,.0f} images/s")
    return found


def write(done: dict[str, dict[str, Any]], out: Path) -> None:
    """junit.xml and verdict.md, of what there is by now."""
    marks = {"failed": "failure", "timeout": "failure", "skipped": "skipped", "left out": "skipped"}
    cases, rows = [], ["| step | ended | s | |", "| --- | --- | --- | --- |"]
    for name, each in done.items():
        mark, said = marks.get(each["status"]), each["said"].replace("|", "/")
        inner = f"<{mark} message={quoteattr(said)}/>" if mark else ""
        cases.append(f'<testcase classname="gpu.session" name="{name}" '
                     f'time="{each["seconds"]}">{inner}</testcase>')  # fmt: skip
        rows.append(f"| {name} | {each['status']} | {each['seconds']:g} | {said} |")
    body = "".join(cases)
    text = f'<testsuite name="gpu.session" tests="{len(cases)}">{body}</testsuite>\n'
    (out / "junit.xml").write_text(text)
    for name in done:
        rows += ["", f"## {name}", *found] if (found := rates(out / name)) else []
    (out / "verdict.md").write_text("\n".join(rows) + "\n")


def install(wheels: Path, site: Path) -> None:
    """Join wheels that came in parts, and unpack all that are not there yet."""
    whole = site.parent / "wheels"
    whole.mkdir(exist_ok=True)
    for file in sorted(wheels.iterdir(), key=lambda f: (f.stem, len(f.name), f.name)):
        name, _, part = file.name.partition(".whl")
        if file.name.endswith(".whl"):
            shutil.copy(file, whole)
        elif part:
            with (whole / f"{name}.whl").open("wb" if part == ".0" else "ab") as to:
                to.write(file.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade",
         "--target", str(site), *map(str, whole.glob("*.whl"))], check=True,
    )  # fmt: skip


def dry(text: str, model: Path) -> str:
    """The same suite, as far as the fake backend goes, on the CPU."""
    axes = (
        text.partition("\n[axes]\n")[2].partition("\n\n")[0].replace(SIZES, "[1, 8]").splitlines()
    )
    axes = [each for each in axes if each.startswith(("batch_size", "scenario"))]
    return "\n".join([
        f'[workload]\nmodel = "{model.resolve()}"\nweights = "file"\nimages = "synthetic"',
        '[axes]\nbackend = "fake"\ndevice = "cpu"\ncores = 1', *axes,
        "[policy]\nrepeats = 1\nwarmup_s = 0.01\nduration_s = 0.02\nblock_s = 0.005\n",
    ])  # fmt: skip


def profile() -> int:
    """Kernels of a batch, and the share of its time in which none runs, by CUPTI."""
    import torch
    from torch.profiler import ProfilerActivity
    from torchvision.models import resnet50

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("no GPU: nothing is profiled")
        return 0
    network = resnet50().eval().to(device, torch.float16, memory_format=torch.channels_last)
    for size in (1, 64):
        images = torch.zeros(size, 3, 224, 224, dtype=torch.float16, device=device)
        with torch.inference_mode():
            for _ in range(10):
                network(images)
            torch.cuda.synchronize()
            with torch.profiler.profile(
                activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]
            ) as found:
                begin = time.perf_counter()
                for _ in range(20):
                    network(images)
                torch.cuda.synchronize()
                wall_us = (time.perf_counter() - begin) * 1e6
        kernels = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(e.device_time_total for e in kernels)
        idle = max(0.0, 1 - busy / wall_us)
        print(f"batch {size}: {len(kernels) / 20:g} kernels, GPU idle {idle:.0%} (under CUPTI)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
