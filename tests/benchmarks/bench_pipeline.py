"""What overlapping reaches: photographs on cores of their own, a network on the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from gpubench.analysis.pipeline import breakdown
from gpubench.run import driver, setup
from gpubench.run.watcher import Silent

Figure = Callable[[str, float, float], None]

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed")


@pytest.mark.parametrize("model", ["squeezenet1_1", "resnet18"])
def test_overlapped_throughput_against_the_slower_group_alone(
    figure: Figure, tmp_path: Path, model: str
) -> None:
    """Both of each repeat are measured in one process, one after the other.

    Of squeezenet1_1 the groups take about as long as each other, the hardest case for a queue.
    """
    (tmp_path / "suite.toml").write_text(
        f"""
        [workload]
        model = "{model}"
        images = "photos"
        [axes]
        backend = "openvino"
        device = "cpu"
        scenario = "throughput"
        boundary = "pipeline"
        batch_size = 4
        cores = 2
        loader_cores = 1
        [policy]
        repeats = 9
        max_repeats = 9
        duration_s = 1.0
        block_s = 0.5
        """
    )
    session = setup.session(str(tmp_path / "suite.toml"), {}, None, tmp_path / "run", False, ())
    records = driver.run(session, Silent()).records
    assert [r.reason for r in records if r.status != "ok"] == []
    shares = []
    for record in records:
        found = breakdown([record])
        assert found is not None
        assert found.share_of_slowest is not None
        shares.append(found.share_of_slowest)
        groups = {name: f"{found.stages[name] / 1e6:.1f} ms" for name in ("loader", "session")}
        facts = record.facts["pipeline"]
        print(f"\n{groups}, {facts['loader_cores']} + {facts['session_cores']} cores, "
              f"{facts['loader']['kind']}, zero copy {facts['zero_copy']}: "
              f"{found.share_of_slowest:.3f} of {found.group} alone")  # fmt: skip
    figure("slower group alone / overlapped throughput", 1 / median(shares), 1 / 0.9)
