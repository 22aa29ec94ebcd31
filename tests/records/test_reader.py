from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest
from msgspec.structs import replace

from gpubench.errors import RecordError
from gpubench.records import samples as turns
from gpubench.records.reader import read, read_all, read_arms
from gpubench.records.record import SCHEMA, Header, Record, merged
from gpubench.records.samples import Samples
from gpubench.records.writer import Writer
from gpubench.suite.types import Axes, Policy, Suite, Workload
from tests.hostile.commands import gpubench
from tests.measure.virtual import make_cell

HEADER = Header(
    run_id="r",
    suite=Suite(
        name="s",
        workload=Workload(),
        axes=Axes(backend=("fake",)),
        policy=Policy(),
        exclude=({"backend": "fake", "batch_size": 3},),
        baseline="fake",
    ),
    environment={"cpu": {"model": "x"}},
    fingerprint="f",
    command=["gpubench"],
    started="now",
    planned=[make_cell()],
)


def samples(replica: int = 0, start: int = 0, n: int = 10, ns: int = 100, **more: int) -> Samples:
    return Samples(
        replica=replica,
        device="cpu:0",
        durations_ns=[ns] * n,
        start_ns=start,
        end_ns=start + n * ns,
        **more,
    )


def record(repeat: int = 0, **changes: object) -> Record:
    values = {"cell": make_cell(), "repeat": repeat, "status": "ok", "replicas": [samples()]}
    return Record(**(values | changes))  # type: ignore[arg-type]


def written(path: Path, count: int = 3) -> bytes:
    with Writer(path, HEADER) as writer:
        for repeat in range(count):
            writer.append(record(repeat))
    return (path / "records.jsonl").read_bytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written(tmp_path)
    file = read(tmp_path)
    assert file.header == HEADER
    assert file.records == [record(0), record(1), record(2)]
    assert file.notes == []


def test_what_was_taken_or_left_out_is_noted_once(tmp_path: Path) -> None:
    with Writer(tmp_path, HEADER) as writer:
        for repeat in range(2):
            said = {"weights_taken": "'model' is taken", "images_skipped": "1 of 3: 1 truncated"}
            writer.append(record(repeat, facts=said))
    file = read(tmp_path)
    assert file.notes == ["images skipped: 1 of 3: 1 truncated", "weights: 'model' is taken"]
    assert file.damage == []  # what many runs are read for is told of the files only


def test_line_ends_of_another_system_change_nothing(tmp_path: Path) -> None:
    body = written(tmp_path)
    (tmp_path / "records.jsonl").write_bytes(body.replace(b"\n", b"\r\n"))
    assert read(tmp_path).records == [record(0), record(1), record(2)]


def test_every_cut_of_the_last_line_keeps_the_rest(tmp_path: Path) -> None:
    body = written(tmp_path)
    last = body.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(body)):
        (tmp_path / "records.jsonl").write_bytes(body[:end])
        file = read(tmp_path)
        assert len(file.records) == 2
        assert len(file.notes) == (end > last)


def test_a_flipped_byte_anywhere_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    body = written(tmp_path)
    path = tmp_path / "records.jsonl"
    for place in range(len(body) - 1):
        line = body[:place].count(b"\n") + 1
        for mask in (1, 128, body[place] ^ ord("\n"))[: 1 if place % 7 else 3]:
            damaged = bytearray(body)
            damaged[place] ^= mask
            if damaged == body:
                continue  # it is a line's end already
            path.write_bytes(damaged)
            with pytest.raises(RecordError, match=rf"line {line}\b|schema"):
                read(path)


def test_resume_drops_the_cut_line_and_the_last_record_of_a_task_counts(tmp_path: Path) -> None:
    body = written(tmp_path)
    (tmp_path / "records.jsonl").write_bytes(body[:-20])
    with Writer(tmp_path, None) as writer:
        writer.append(record(1, reason="again"))
    assert [r.reason for r in read(tmp_path).records] == ["", "again"]


def test_a_second_run_or_writer_is_refused(tmp_path: Path) -> None:
    with Writer(tmp_path, HEADER):
        for header in (HEADER, None):
            with pytest.raises(RecordError, match="another gpubench"):
                Writer(tmp_path, header)
    with pytest.raises(RecordError, match="holds a run already"):
        Writer(tmp_path, HEADER)
    with pytest.raises(RecordError, match="no record file there"):
        Writer(tmp_path / "nowhere", None)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_system_without_locks_is_no_other_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RecordError, match="cannot be locked: Function not implemented"):
        Writer(tmp_path, HEADER)


def test_what_was_left_before_its_header_was_whole_is_no_run(tmp_path: Path) -> None:
    """As a killed run leaves it: it is begun, and a foreign file is not touched."""
    path, body = tmp_path / "records.jsonl", written(tmp_path)
    header = body[: body.index(b"\n") + 1]
    for end in (0, 1, 10, len(header) // 2, len(header) - 1):
        path.write_bytes(header[:end])
        with pytest.raises(RecordError, match="start it again, without --resume"):
            read(tmp_path)
        with Writer(tmp_path, HEADER):
            pass
        assert path.read_bytes() == header
    path.write_bytes(b"my notes")
    with pytest.raises(RecordError, match="holds a run already"):
        Writer(tmp_path, HEADER)
    Writer(tmp_path, None).__exit__()
    assert path.read_bytes() == b"my notes"


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """/dev/full cannot be cut back, so the real file is limited by RLIMIT_FSIZE instead."""
    import resource
    import signal

    with Writer(tmp_path, HEADER) as writer:
        writer.append(record(0))
        size = writer.path.stat().st_size
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, old[1]))
            with pytest.raises(OSError, match="too large"):
                writer.append(record(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, handler)
        assert writer.path.stat().st_size == size
        writer.append(record(2))
    assert [r.repeat for r in read(tmp_path).records] == [0, 2]


@pytest.mark.parametrize("schema", [*range(1, SCHEMA), SCHEMA + 1, 0, -1])
def test_another_schema_is_refused_with_what_to_do(tmp_path: Path, schema: int) -> None:
    """Whatever else the header of another schema holds."""
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"header":{"schema":%d,"was":"another"},"crc":"00000000"}\n' % schema)
    words = (
        f"{path}: has schema {schema}, but this gpubench reads schema {SCHEMA}; measure again, "
        "or read it with the gpubench that wrote it"
    )
    with pytest.raises(RecordError) as refused:
        read(path)
    assert str(refused.value) == words
    with pytest.raises(RecordError, match=f"has schema {schema}, but"):
        read_all([tmp_path])
    code, out, err = gpubench("report", tmp_path)
    assert (code, out) == (2, "")
    assert words in err.replace("\n", " ")


@pytest.mark.parametrize("body", [b"", b"hello\n", b"\x00\xff\n", b'{"header":{}}\n', b"[1]\n"])
def test_other_files_are_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(body)
    with pytest.raises(RecordError):
        read(path)
    with pytest.raises(RecordError, match="no record file"):
        read(tmp_path / "nowhere")


def test_throughput_counts_images_inside_the_common_window_only() -> None:
    """Replica 1 starts 500 ns late and runs at half the speed; nobody's own rate is summed."""
    cell = make_cell(replicas=2, batch_size=4)
    both = [samples(0, 0, 10, 100), samples(1, 500, 5, 200)]
    result = record(cell=cell, replicas=both)
    assert turns.window_ns(result.replicas) == (500, 1000)
    assert result.replica_rates() == pytest.approx([4 * 5 / 500e-9, 4 * 2.5 / 500e-9])
    assert result.images_per_s() == pytest.approx(4 * 7.5 / 500e-9)


def test_no_common_window_no_throughput() -> None:
    result = record(replicas=[samples(0, 0), samples(1, 5000)])
    assert turns.window_ns(result.replicas) is None
    assert result.images_per_s() is None


def test_grouped_samples_count_each_iteration() -> None:
    result = record(replicas=[samples(iterations=5)])
    assert result.latencies_ns() == [20.0] * 10
    assert result.images_per_s() == pytest.approx(50 / 1000e-9)
    assert result.value() == 20.0


def test_latency_counts_only_while_all_replicas_ran() -> None:
    """Replica 0 runs on alone, twice as fast, after replica 1 has ended."""
    long = Samples(
        replica=0,
        device="cpu:0",
        durations_ns=[4_000_000] * 5 + [2_000_000] * 20,
        start_ns=0,
        end_ns=60_000_000,
    )
    short = samples(1, 0, 5, 4_000_000)
    result = record(cell=make_cell(replicas=2), replicas=[long, short])
    assert turns.window_slices(result.replicas) == [slice(0, 5), slice(0, 5)]
    assert set(result.latencies_ns()) == {4_000_000}
    assert len(record(replicas=[long]).latencies_ns()) == 25


def test_what_goes_by_between_samples_counts_where_they_lie() -> None:
    """Caches are emptied for 9 ms before each batch of 1 ms; then the rival has ended at 50 ms."""
    ms = 1_000_000
    long = replace(samples(0, 0, 10, ms), end_ns=100 * ms)
    both = [long, replace(samples(1, 0, 5, ms), end_ns=50 * ms)]
    assert turns.window_slices(both) == [slice(0, 5), slice(0, 5)]
    assert turns.rates(both, 1) == pytest.approx([5 / 0.05, 5 / 0.05])


def test_paths_that_cannot_be_are_record_errors(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="too long"):
        read("x" * 300)


# ------------------------------------------------------------------------------ energy, memory


def drawing(joules: float, seconds: float, idle: float | None = None, **changes: object) -> Record:
    """Two replicas, 10 images in 1000 ns each: 2e7 images/s together."""
    energy = {"joules": joules, "seconds": seconds, "source": "rapl", "idle_watts": idle}
    turn = {"replicas": [samples(0), samples(1)], "telemetry": {"energy": energy}}
    return record(**(turn | {"cell": make_cell(batch_size=1, replicas=2)} | changes))


def test_energy_per_image_is_power_over_rate() -> None:
    one = drawing(1000.0, 10.0, idle=40.0)
    assert one.images_per_s() == pytest.approx(2e7)
    assert one.joules_per_image() == pytest.approx(100 / 2e7)
    assert one.joules_per_image(above_idle=True) == pytest.approx(60 / 2e7)


def test_what_is_done_between_batches_for_the_caches_is_no_batchs_time() -> None:
    apart = replace(samples(), durations_ns=[1000] * 10, end_ns=1_000_000)
    found = drawing(1000.0, 10.0, replicas=[apart], cell=make_cell(batch_size=1, cache="cold"))
    assert found.images_per_s() == pytest.approx(1e6)
    assert found.joules_per_image() is None
    assert replace(found, cell=make_cell(batch_size=1)).images_per_s() == pytest.approx(1e4)


def test_energy_of_a_short_window_or_of_none_is_refused() -> None:
    assert drawing(1000.0, 4.99).joules_per_image() is None
    assert drawing(1000.0, 5.0).joules_per_image() is not None
    assert drawing(0.0, 10.0).joules_per_image() is None, "a counter that stood still"
    assert drawing(1000.0, 10.0, replicas=[]).joules_per_image() is None
    assert record().joules_per_image() is None
    assert drawing(1000.0, 10.0).joules_per_image(above_idle=True) is None
    assert drawing(1000.0, 10.0, idle=100.0).joules_per_image(above_idle=True) is None


def test_turns_follow_one_another_and_a_median_is_that_of_all_their_samples() -> None:
    def turn(*ns: int) -> list[Samples]:
        return [replace(samples(n), durations_ns=list(ns), end_ns=sum(ns)) for n in range(2)]

    each = [turn(10, 10, 10), turn(90), turn(12, 13)]
    workers = [
        record(replicas=[each[0][n]], again=[turn[n] for turn in each[1:]], facts={"pinned": [""]})
        for n in range(2)
    ]
    joined = merged(workers)
    assert joined.visits == each
    assert joined.median_ns() == 11.0  # of the turns' medians it would be 12.5
    assert record(replicas=each[0]).visits == each[:1]
    assert record(replicas=[]).visits == []
    assert record(replicas=[]).median_ns() is None


def test_peak_memory_is_the_host_s_and_on_a_gpu_the_device_s_too() -> None:
    both = [samples(n, peak_host_bytes=100 + n) for n in range(2)]
    assert record(replicas=both).peak_bytes() == 201
    assert record(replicas=both, again=[samples(n, peak_host_bytes=300) for n in range(2)]
                  ).peak_bytes() == 600  # fmt: skip
    gpus = [{"index": 0, "own_memory_bytes_peak": 1000}, {"index": 1, "own_memory_bytes_peak": 7}]
    cuda = make_cell(device="cuda", replicas=2)
    assert record(cell=cuda, replicas=both, telemetry={"gpus": gpus}).peak_bytes() == 1208


def test_peak_memory_of_which_a_part_is_unknown_is_unknown() -> None:
    told, silent = samples(0, peak_host_bytes=100), samples(1)
    assert record(replicas=[told, silent]).peak_bytes() is None
    assert record(replicas=[]).peak_bytes() is None
    cuda = make_cell(device="cuda")
    for gpus in ([], [{"index": 0}], [{"own_memory_bytes_peak": 5}, {"index": 1}]):
        assert record(cell=cuda, replicas=[told], telemetry={"gpus": gpus}).peak_bytes() is None


def test_an_ab_has_begun_when_both_arms_have(tmp_path: Path) -> None:
    assert read_arms(tmp_path) is None
    whole = written(tmp_path / "baseline")
    (tmp_path / "candidate").mkdir()
    file = tmp_path / "candidate" / "records.jsonl"
    for cut in (0, 20):
        file.write_bytes(whole[:cut])
        assert read_arms(tmp_path) is None, "killed before the header was whole"
    file.write_bytes(whole)
    arms = read_arms(tmp_path)
    assert arms is not None
    assert [Path(arm.path).parent.name for arm in arms] == ["baseline", "candidate"]
