"""Bisect for real: `python -m tests.benchmarks.bisect_commits [COMMITS [SLOW [LAYERS]]]`.

A network of 20 equal convolutions has 22 (or LAYERS) from one commit on: 10 % more work.
Environments are made with uv, processes are real ones, and what is found is held against what was
done. On a machine that other work shares with it 10 % may be too little to be found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, SLOWER = 20, 22
SUITE = """
[workload]
model = "net.onnx"
images = "synthetic"
[axes]
backend = ["onnxruntime"]
batch_size = [1]
scenario = ["latency"]
device = "cpu"
cores = 1
[policy]
duration_s = 0.5
"""


def network(layers: int) -> onnx.ModelProto:
    """(n, 3, 32, 32) -> (n, 10), after so many convolutions of 32 channels."""
    rng = np.random.default_rng(0)
    weights = {"first": rng.normal(0, 0.2, (32, 3, 3, 3)), "last": rng.normal(0, 0.2, (32, 10))}
    weights |= {f"w{n}": rng.normal(0, 0.08, (32, 32, 3, 3)) for n in range(layers)}
    nodes = [helper.make_node("Conv", ["images", "first"], ["x0"], pads=[1, 1, 1, 1])]
    for n in range(layers):
        nodes.append(helper.make_node("Conv", [f"x{n}", f"w{n}"], [f"y{n}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{n}"], [f"x{n + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"x{layers}"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "last"], ["logits"]))
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def git(at: Path, *words: str) -> str:
    """What git answers."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    found = subprocess.run(["git", "-C", str(at), *who, *words], capture_output=True, check=True)
    return found.stdout.decode().strip()


def repository(top: Path, commits: int, slow: int, layers: int) -> str:
    """Make it; the slow commit."""
    git(top, "init", "-q", ".")
    (top / "pyproject.toml").write_text(
        '[project]\nname = "scratch"\nversion = "1"\nrequires-python = ">=3.11"\n'
    )
    (top / "gate.toml").write_text(SUITE)
    found = ""
    for n in range(commits + 1):
        if n in (0, slow):
            onnx.save(network(layers if n else LAYERS), top / "net.onnx")
        (top / "code.py").write_text(f"number = {n}\n")
        git(top, "add", ".")
        git(top, "commit", "-qm", f"change {n}")
        found = git(top, "rev-parse", "HEAD") if n == slow else found
    return found


def main() -> int:
    """The command line."""
    given = [int(word) for word in sys.argv[1:4]]
    commits, slow, layers = given + [16, 11, SLOWER][len(given) :]
    with tempfile.TemporaryDirectory() as place:
        top = Path(place) / "scratch"
        top.mkdir()
        true, begin = repository(top, commits, slow, layers), time.monotonic()
        bad = ["--good", f"HEAD~{commits}", "--bad", "HEAD", "--json", "-o", f"{place}/out"]
        cache = ["--cache-dir", os.environ.get("BISECT_CACHE", f"{place}/cache")]
        command = [sys.executable, "-m", "gpubench", "bisect", "gate.toml", *bad, *cache]
        done = subprocess.run(command, cwd=top, stdout=subprocess.PIPE, check=False)
        took, found = time.monotonic() - begin, json.loads(done.stdout or "{}")
        clean = git(top, "status", "--porcelain") == ""
    print(json.dumps(found, indent=2))
    named = [one["candidates"] for one in found.get("found", []) if one["what"] == "step"]
    right = named == [[true[:12]]]
    print(f"{'right' if right else 'WRONG'}: {named} of {commits}, truly {true[:12]}")
    print(f"{took:.0f} s; the checkout is {'clean' if clean else 'CHANGED'}")
    return 0 if right and clean else 1


if __name__ == "__main__":
    sys.exit(main())
