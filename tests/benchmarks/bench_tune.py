"""What `gpubench tune` finds: against today's default, and against measuring everything.

uv run pytest tests/benchmarks/bench_tune.py --benchmark-enable -s -q -o python_files='bench_*.py'

The first part takes two searches of ten minutes each on an otherwise idle machine; the second needs
a space recorded by `python -m tests.benchmarks.tune.record`, and skips itself without one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpubench.records.reader import read
from gpubench.records.record import RECORDS
from tests.benchmarks.tune import replay

Figure = Callable[[str, float, float], None]
CODE = "from gpubench.cli.main import main; main()"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("points", "times"), [(1, 11), (3, 18)])
def test_resnet50_against_today(points: int, times: float, tmp_path: Path, figure: Figure) -> None:
    """The probe on digits; today's default is torch-eager in fp32 at its best batch size.

    The gain is that of the search's own evidence: pairs of an interleaved A/B.
    """
    words = ["tune", "resnet50", "--weights", "probe", "--images", "digits", "--budget", "10m",
             "--max-accuracy-drop", str(points), "-o", str(tmp_path), "--json"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", CODE, *words], check=True, capture_output=True)
    found = json.loads(done.stdout)
    best, pairs = found["recommendation"], found["gain_of_pairs"]
    assert pairs, "the search ended without an A/B"
    accuracy = {name: found[name]["accuracy"]["value"] for name in ("recommendation", "baseline")}
    print(
        "\n" + "\n".join(found["lines"]) + f"\npairs: {pairs['value']:.2f} "
        f"[{pairs['low']:.2f}, {pairs['high']:.2f}]; accuracy {accuracy}; {found['measured']} of "
        f"{len(found['configurations'])} configurations measured in {found['seconds']:.0f} s"
    )
    figure("points of accuracy lost", best["drop_points"], points)
    figure(f"{times} / how many times as fast", times / pairs["value"], 1.0)


@pytest.mark.timeout(1800)
def test_replays_of_a_recorded_space(figure: Figure) -> None:
    """20 searches a question and proposer, on what measuring everything showed."""
    if not (replay.HERE / RECORDS).exists():
        pytest.skip(f"{replay.HERE} holds no recorded space: see tests.benchmarks.tune.record")
    rows = replay.run(read(replay.HERE), replay.SEEDS, workers=2)
    print("\n" + replay.markdown(rows))
    outcomes = [o for row in rows for o in row.outcomes]
    figure("recommendations that break a limit", sum(bool(o.broken) for o in outcomes), 0)
    figure("of the cost of measuring everything, most", max(o.cost for o in outcomes), replay.COST)
    print(f"short of the best of all, most: {1 - min(o.reach for o in outcomes):.3f}")
    short = 1 - min(o.of_sure for o in outcomes)
    figure("short of the best that can be promised, most", short, 1 - replay.REACH)
