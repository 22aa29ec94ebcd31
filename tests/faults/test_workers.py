"""What a backend, or a fate of its process, does to a run: one failed record, and it goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpubench.records.record import Record
from tests.faults.conftest import Cli

MakeCli = Callable[..., Cli]


def told(records: list[Record], option: str) -> dict[str, tuple[str, str, str]]:
    """Option's value -> (status, kind, reason) of the cell's first record that is not ok."""
    found: dict[str, tuple[str, str, str]] = {}
    for r in sorted(records, key=lambda r: r.status == "ok"):
        found.setdefault(str(r.cell.options[option]), (r.status, r.kind, r.reason))
    return found


def test_a_backend_that_raises_in_any_method(cli: MakeCli) -> None:
    methods = ["prepare", "open", "enter", "copy_in", "run", "sync", "copy_out", "facts"]
    methods += ["counters", "exit"]
    run = cli(at=[*methods, "unsupported", ""], backend='["broken", "broken-probe"]')
    assert run().returncode == 1
    found = told([r for r in run.records() if r.cell.backend == "broken"], "at")
    for method in methods:
        assert found[method][:2] == ("failed", "error"), method
        assert "broken: told to raise (gpubench_broken.py:" in found[method][2]
    assert found["unsupported"][0] == "unavailable"
    assert "its unsupported failed" in found["unsupported"][2]
    assert found[""] == ("ok", "", "")
    [probed] = [r for r in run.records() if r.cell.backend == "broken-probe"]
    assert (probed.status, probed.remedy) == ("unavailable", "report it to the backend's authors")
    assert "broken: probe" in probed.reason


def test_every_way_to_die(cli: MakeCli) -> None:
    wanted = {
        "kill": ("crash", "SIGKILL"),
        "segv": ("crash", "SIGSEGV in string_at (__init__.py:"),
        "leave": ("crash", "exit code 0"),
        "kill-agent": ("crash", "the agent died: SIGKILL"),
        "unspeakable": ("error", "ValueError in its __str__"),
        "surrogate": ("error", "broken: ? is no text"),
        "device-memory": ("out-of-memory", "CUDA out of memory"),
        "litter": ("crash", "SIGKILL"),
    }
    run = cli(at="run", how=[*wanted, "nothing"])
    assert run().returncode == 1
    found = told(run.records(), "how")
    for how, (kind, words) in wanted.items():
        assert found[how][:2] == ("failed", kind), found[how]
        assert words in found[how][2]
    assert found["nothing"][0] == "ok"


@pytest.mark.slow
def test_what_never_ends_is_ended(cli: MakeCli) -> None:
    """One after the other; an honest cell would need a time-out that a busy machine allows."""
    run = cli(
        at=["prepare", "open", "run"],
        how="stall",
        policy={"timeout_s": 1.5, "prepare_timeout_s": 1.5},
    )
    assert run().returncode == 1
    assert len(run.records()) == 3
    for record in run.records():
        assert (record.status, record.kind) == ("failed", "timeout"), record.reason
        assert "no answer within 1.5 s" in record.reason


@pytest.mark.slow
def test_one_of_several_replicas_dies_at_the_barrier(cli: MakeCli) -> None:
    """Four where they may share the two cores; two in any case."""
    run = cli(at=["open", ""], how="kill-one-waiting", replicas="[2, 4]",
              replicas_per_device="[1, 2]", policy={"repeats": 1, "max_repeats": 1})  # fmt: skip
    assert run().returncode == 1
    here = [record for record in run.records() if record.status != "unavailable"]
    if not here:
        pytest.skip("two cores are needed")
    for record in here:
        if record.cell.options["at"]:
            assert (record.status, record.kind) == ("failed", "crash"), record.reason
            assert "died after 'start': SIGKILL" in record.reason
        else:
            assert record.status == "ok"
    assert {record.cell.options["at"] for record in here} == {"open", ""}
