"""Disks that are full, read-only or damaged, and outputs that nobody reads."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpubench.cache import Cache
from gpubench.records.reader import begun
from gpubench.records.record import RECORDS
from tests.conftest import GPUBENCH
from tests.faults.conftest import Cli, no_root_rights, wait_for

MakeCli = Callable[..., Cli]
Disk = Callable[..., Path]


def fill(place: Path, leave: int) -> Path:
    """A file that takes all but ``leave`` bytes."""
    ballast = place / "ballast"
    ballast.touch()
    free = os.statvfs(place)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - leave)))
    return ballast


def test_no_room_for_the_header(cli: MakeCli, disk: Disk) -> None:
    run = cli()
    run.out = disk(1 << 20) / "run"
    ballast = fill(run.out.parent, 0)
    done = run()
    assert done.returncode == 2
    assert "cannot be written: No space left on device" in done.stderr
    assert not (run.out / RECORDS).exists()
    ballast.unlink()
    assert run().returncode == 0


@pytest.mark.slow
def test_no_room_for_a_record(cli: MakeCli, disk: Disk) -> None:
    """What was finished stays, and the run goes on where it ended."""
    run = cli(policy={"repeats": 12, "max_repeats": 12, "max_samples": 2_000, "duration_s": 60.0})
    run.out = disk(96 << 10) / "run"
    done = run()
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "--resume" in done.stderr
    kept = run.records()
    assert 1 <= len(kept) < 12
    subprocess.run(["mount", "-o", "remount,size=8m", run.out.parent], check=True)
    assert run("--resume").returncode == 0
    assert run.records()[: len(kept)] == kept
    assert len(run.records()) == 12


@pytest.mark.slow
def test_no_room_for_the_report(cli: MakeCli, disk: Disk) -> None:
    run = cli()
    run.out = disk(256 << 10) / "run"
    run.html = True
    done = run()
    assert done.returncode == 1
    assert f"gpubench report {run.out}" in done.stderr
    assert len(run.records()) == 2
    assert {path.name for path in run.out.iterdir()} == {RECORDS, "agent.log", "tiny.toml"}


@pytest.mark.slow
def test_no_room_for_the_cache(cli: MakeCli, disk: Disk) -> None:
    place = disk(96 << 10)  # less than the reference needs
    run = cli(cache=place / "cache", batch_size="[1, 2]")
    assert run().returncode == 1
    for record in run.records():
        assert (record.status, record.kind) == ("failed", "error")
        assert "No space left on device" in record.reason
    assert not [p for p in (place / "cache").rglob("*") if p.name.endswith(".tmp")]
    subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    assert run("--resume").returncode == 0


def test_no_room_for_the_log(cli: MakeCli, disk: Disk) -> None:
    """A worker that cannot write why it failed still says it to the driver."""
    run = cli(at="run")
    log = disk(4096) / "log"
    run.out.mkdir()
    own = run.out / "agent.log"
    for path in (log, own):
        path.touch()
    fill(log.parent, 0)
    subprocess.run(["mount", "--bind", log, own], check=True)
    try:
        assert run().returncode == 1
    finally:
        subprocess.run(["umount", own], check=True)
    assert "broken: told to raise" in run.records()[0].reason


def test_a_read_only_directory(cli: MakeCli, disk: Disk) -> None:
    run = cli()
    run.out = disk(1 << 20, "ro") / "run"
    done = run()
    assert done.returncode == 2
    assert f"{run.out / RECORDS}: cannot be written: Read-only file system" in done.stderr


@pytest.mark.slow
def test_directories_without_rights(cli: MakeCli, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    run = cli()
    run.out = closed / "run"
    done = run(preexec_fn=no_root_rights)
    assert done.returncode == 2
    assert "cannot be written: Permission denied" in done.stderr
    closed.chmod(0o700)
    run = cli(cache=closed)
    assert run(preexec_fn=no_root_rights).returncode == 0
    for entry in closed.glob("*/*/"):
        entry.chmod(0)
    run.out = tmp_path / "again"
    done = run(preexec_fn=no_root_rights)
    assert done.returncode == 1
    assert {(r.status, r.kind) for r in run.records()} == {("failed", "error")}
    assert "Permission denied" in run.records()[0].reason
    assert "--cache-dir" in run.records()[0].reason
    for entry in closed.glob("*/*/"):
        entry.chmod(0o700)
    closed.chmod(0o777)
    done = run("--resume")
    assert done.returncode == 2
    assert "writable by its owner only" in done.stderr


@pytest.mark.slow
def test_a_damaged_cache_is_made_again(cli: MakeCli, tmp_path: Path) -> None:
    run = cli(cache=tmp_path / "cache")
    assert run().returncode == 0
    [reference] = (tmp_path / "cache/reference").glob("*/logits.npy")
    damaged = bytearray(reference.read_bytes())
    damaged[-1] ^= 1
    reference.write_bytes(damaged)
    [artefact] = (tmp_path / "cache/broken").glob("*/")
    shutil.rmtree(artefact)
    artefact.write_text("no entry")
    [durations] = (tmp_path / "cache/durations").glob("*/content")
    durations.write_text('{"a": NaN, "b": ' + "[" * 100_000)
    run.out = tmp_path / "again"
    done = run()
    assert done.returncode == 0, done.stderr
    assert [r.status for r in run.records()] == ["ok", "ok"]
    log = (run.out / "agent.log").read_text()
    assert log.count("is damaged") == 2
    assert (tmp_path / "made").read_text() == "made\nmade\n"
    assert {u.kind: u.entries for u in Cache(tmp_path / "cache").info()}["broken"] == 1


def test_an_artefact_that_vanishes_between_two_repeats(cli: MakeCli, tmp_path: Path) -> None:
    run = cli(how="vanish", cache=tmp_path / "cache")
    assert run().returncode == 1
    first, second = run.records()
    assert (first.status, second.status, second.kind) == ("ok", "failed", "error")
    assert "No such file or directory" in second.reason
    assert "artefact" in second.reason


@pytest.mark.slow
def test_a_cache_is_not_cleared_and_a_record_file_not_lost_during_a_run(
    cli: MakeCli, tmp_path: Path
) -> None:
    run = cli(cache=tmp_path / "cache", policy={"repeats": 30, "max_repeats": 30})
    clear = [*GPUBENCH, "cache", "clear", "--cache-dir", run.cache_dir]
    process = run.start()
    wait_for("a record", lambda: begun(run.out) and len(run.records()) > 1)
    done = subprocess.run(clear, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a gpubench that is running uses it, so nothing was removed" in done.stderr
    subprocess.run(["sed", "-i", "s/x/x/", run.out / RECORDS], check=True)
    kept = run.out / "records-kept.jsonl"
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"whole in {kept}" in err
    kept.rename(run.out / RECORDS)
    assert 1 < len(run.records()) < 30
    assert run("--resume").returncode == 0
    assert {r.status for r in run.records()} == {"ok"}
    assert subprocess.run(clear, check=False).returncode == 0
    assert [p.name for p in run.cache_dir.iterdir()] == ["in-use.lock"]


@pytest.mark.slow
def test_a_damaged_record_file_is_bad_input(cli: MakeCli) -> None:
    run = cli()
    assert run().returncode == 0
    path = run.out / RECORDS
    body = path.read_bytes()
    place = body.rindex(b'"durations_ns":[') + 17  # the last line is line 3
    flipped = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
    for damaged, line in ((flipped, 3), (body + b"garbage\n", 4)):
        path.write_bytes(damaged)
        done = run("--resume")
        assert done.returncode == 2
        assert f"line {line}: " in done.stderr
        assert path.read_bytes() == damaged
    path.write_bytes(body[:place])
    assert run("--resume").returncode == 0
    assert [r.repeat for r in run.records()] == [0, 1]


@pytest.mark.parametrize(
    "closed", ["<&- >&- 2>&-", pytest.param(">/dev/full 2>&1", marks=pytest.mark.slow)]
)
def test_standard_streams_that_are_closed_or_full(cli: MakeCli, closed: str) -> None:
    run = cli()
    command = f'"$@" {closed}'
    done = subprocess.run(
        ["bash", "-c", command, "bash", *run.command()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [r.status for r in run.records()] == ["ok", "ok"]
    assert b"\x00" not in (run.out / RECORDS).read_bytes()
    assert (run.out / "report.html").exists()


def test_what_cannot_be_printed_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*GPUBENCH, "schema"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_a_reader_that_stops_reading_and_goes(cli: MakeCli) -> None:
    run = cli(policy={"repeats": 4, "max_repeats": 4})
    process = run.start()
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert process.stderr
    assert process.stderr.read() == ""
    process.stderr.close()
    assert len(run.records()) == 4
