"""Record files from strangers, through every command that reads them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubench.records.reader import read
from tests.hostile import files
from tests.hostile.commands import fuzz, gpubench, told

HEADER, RECORDS = files.run()
ARMS = files.arms()
SEARCH, TRIALS, PROOF = files.search()
WHOLE = b"".join([files.line("header", HEADER), *(files.line("record", r) for r in RECORDS)])
NUMBERS = [
    *(0, 1, -1, 2, 1e-300, 0.5, 1e300, 1.7e308, -1e308),
    *(10**15, 10**15 + 1, 2**31, 2**53, 2**63, -(2**63), 2**64, 10**30, 10**400),
]
OTHERS = [None, True, "", "x", "\x00\x1b[2J", "=1+1", [], {}, [[]], {"a": {}}, "9" * 5000]


def commands(place: Path, html: bool) -> list[list[object]]:
    """Everything that reads records, on files in ``place``: run.jsonl and the A/B in ab/."""
    run, out = place / "run" / "records.jsonl", place / "out"
    formats = ["text", "md", "csv", "json", *(["html"] if html else [])]
    exports = ["pytest-benchmark", "github-action-benchmark", "bencher", "junit", "csv", "parquet"]
    return [
        *(["report", run, "-f", f, "-o", out / f"r.{f}"] for f in formats),
        *(["export", run, "-f", f, "-o", out / f"e-{f}"] for f in exports),
        ["compare", run, place / "good" / "records.jsonl", "--cache-dir", place / "cache"],
        ["compare", run, run, "--github", "--json", "--cache-dir", place / "cache"],
        ["history", place / "run", *(["-f", "html"] if html else [])],
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one good run in it."""
    made = tmp_path_factory.mktemp("records")
    files.write(made / "good" / "records.jsonl", HEADER, RECORDS)
    return made


def survives(place: Path, *, html: bool = False) -> bool:
    """Whether the file is refused; every command must then say so, and work where it is not."""
    code, _, err = gpubench("report", place / "run", "-f", "csv", "-o", place / "out.csv")
    if code:
        told(code, err, "records.jsonl")
        return True
    for words in commands(place, html):
        code, _, err = gpubench(*words)
        assert code in (0, 1, 2, 3, 4), (words, err)
        assert "Traceback" not in err
        if code == 2:
            assert "no cell has a result" in err or "differ" in err or "no run has" in err, err
    return False


def test_the_good_run_passes(place: Path) -> None:
    files.write(place / "run" / "records.jsonl", HEADER, RECORDS)
    assert not survives(place, html=True)
    for (header, records), arm in zip(ARMS, ("baseline", "candidate"), strict=True):
        files.write(place / "ab" / arm / "records.jsonl", header, records)
    assert gpubench("compare", place / "ab")[0] == 1


@fuzz(60)
@given(st.data())
def test_one_value_is_another(place: Path, data: st.DataObject) -> None:
    """Anything may stand anywhere: it is refused with its line, or every report copes with it."""
    change = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(OTHERS), st.text(max_size=5))
    header, records = HEADER, list(RECORDS)
    for _ in range(data.draw(st.integers(1, 2))):
        value = data.draw(change)
        if data.draw(st.integers(0, 3)) == 0:
            at = data.draw(st.sampled_from(list(files.places(HEADER))[1:]))
            header = files.changed(header, at, lambda _, v=value: v) if header is HEADER else header
        else:
            n = data.draw(st.integers(0, len(records) - 1))
            at = data.draw(st.sampled_from(list(files.places(RECORDS[n]))[1:]))
            if records[n] is RECORDS[n]:
                records[n] = files.changed(records[n], at, lambda _, v=value: v)
    files.write(place / "run" / "records.jsonl", header, records)
    survives(place)


@fuzz(8)
@given(st.data())
def test_numbers_that_are_allowed_are_coped_with(place: Path, data: st.DataObject) -> None:
    extremes(place, data)


@pytest.mark.slow
@fuzz(25)
@given(st.data())
def test_more_numbers_that_are_allowed_are_coped_with(place: Path, data: st.DataObject) -> None:
    extremes(place, data)


def extremes(place: Path, data: st.DataObject) -> None:
    """Within the limits, several at a time: nothing divides by zero or overflows."""
    records = []
    extreme = st.sampled_from([1, 2, 10**9, 10**15])
    for r in RECORDS:
        r = files.changed(r, (), dict)
        if r["replicas"] and data.draw(st.booleans()):
            turn = []
            for s in r["replicas"]:
                start = data.draw(st.sampled_from([-(10**15), 0, 1, 10**15]))
                length = data.draw(st.sampled_from([0, 1, 10**9, 10**15]))
                turn.append(s | {
                    "durations_ns": data.draw(st.lists(extreme, max_size=40)), "counts": [],
                    "iterations": data.draw(st.sampled_from([1, 1000, 2**31 - 1])),
                    "start_ns": start, "end_ns": min(10**15, start + length),
                })  # fmt: skip
            r["replicas"] = turn
            r["wall_s"] = data.draw(st.sampled_from([0, 1e-9, 1e9]))
            gpu = files.GPU | {"power_w": {"mean": data.draw(st.sampled_from([0, 1e308, -1e308]))}}
            r["telemetry"] = r["telemetry"] | {"gpus": [gpu]}
        records.append(r)
    files.write(place / "run" / "records.jsonl", HEADER, records)
    assert not survives(place, html=data.draw(st.integers(0, 29)) == 0)


@fuzz(40)
@given(st.data())
def test_arms_of_an_ab(place: Path, data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(NUMBERS) | st.sampled_from(OTHERS))
    which = data.draw(st.integers(0, 1))
    for n, arm in enumerate(("baseline", "candidate")):
        header, records = ARMS[n]
        if n == which and data.draw(st.booleans()):
            at = data.draw(st.sampled_from([p for p in files.places(header) if "pairing" in p]))
            header = files.changed(header, at, lambda _: value)
        elif n == which:
            i = data.draw(st.integers(0, len(records) - 1))
            at = data.draw(st.sampled_from(list(files.places(records[i]))[1:]))
            records = [
                *records[:i],
                files.changed(records[i], at, lambda _: value),
                *records[i + 1 :],
            ]
        files.write(place / "ab" / arm / "records.jsonl", header, records)
    for words in (
        ["compare", place / "ab", "-o", place / "ab.html"],
        ["report", place / "ab", "-f", "md"],
        ["export", place / "ab", "-f", "junit"],
    ):
        code, _, err = gpubench(*words)
        if code == 2:
            told(code, err, "records.jsonl")
        assert code in (0, 1, 2, 3, 4)


@fuzz(12)
@given(st.data())
def test_a_search(place: Path, data: st.DataObject) -> None:
    """What stands in it may be anything; what it recommends may have vanished."""
    value = data.draw(st.sampled_from(NUMBERS) | st.sampled_from(OTHERS))
    header, records = SEARCH, list(TRIALS)
    which = data.draw(st.sampled_from(["search", "header", "record", "record", "gone"]))
    if which == "gone":
        drawn = data.draw(st.lists(st.booleans(), min_size=len(records), max_size=len(records)))
        records = [r for r, kept in zip(records, drawn, strict=True) if kept]
    elif which == "record":
        n = data.draw(st.integers(0, len(records) - 1))
        at = data.draw(st.sampled_from(list(files.places(records[n]))[1:]))
        records[n] = files.changed(records[n], at, lambda _: value)
    else:
        inside = [p for p in files.places(header) if ("search" in p) == (which == "search")]
        at = data.draw(st.sampled_from(inside[1:]))
        header = files.changed(header, at, lambda _: value)
    files.write(place / "tune" / "records.jsonl", header, records)
    for (head, made), arm in zip(PROOF, ("baseline", "candidate"), strict=True):
        files.write(place / "tune" / "evidence" / arm / "records.jsonl", head, made)
    for words in (
        ["report", place / "tune", "-o", place / "tune.html"],
        ["report", place / "tune", "-f", "json"],
        ["report", place / "tune", "-f", "md"],
        ["compare", place / "tune", place / "good", "--cache-dir", place / "cache"],
        ["export", place / "tune", "-f", "junit"],
    ):
        code, _, err = gpubench(*words)
        if code == 2:
            told(code, err, "records.jsonl")
        assert code in (0, 1, 2, 3, 4)


@fuzz(100)
@given(st.data())
def test_flipped_bytes_with_a_checksum_that_is_right_again(
    place: Path, data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, 6))
    lines = WHOLE.split(b"\n")[: n + 1]
    kind, body = (b"header" if n == 0 else b"record"), bytearray(lines[n])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    start, end = len(kind) + 4, len(body) - 18
    payload = bytes(body[start:end])
    lines[n] = bytes(body[:start]) + payload + b',"crc":"%08x"}' % zlib.crc32(payload)
    (place / "run").mkdir(exist_ok=True)
    (place / "run" / "records.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    code, out, err = gpubench("report", place / "run", "-f", "csv")
    if code:
        told(code, err, "records.jsonl")
    else:
        assert out


@fuzz(60)
@given(body=st.binary(max_size=200), keep=st.integers(0, len(WHOLE)))
def test_noise_after_a_good_beginning(place: Path, body: bytes, keep: int) -> None:
    (place / "run").mkdir(exist_ok=True)
    (place / "run" / "records.jsonl").write_bytes(WHOLE[:keep] + body)
    code, _, err = gpubench("report", place / "run", "-f", "csv")
    if code:
        told(code, err, "records.jsonl")


# ------------------------------------------------------------------------------ one by one


def sample(**changes: Any) -> dict[str, Any]:
    return RECORDS[0]["replicas"][0] | changes


def shown(**changes: Any) -> dict[str, Any]:
    """A parity with a disagreement that no run could have written."""
    return RECORDS[0]["parity"] | {"disagreements": [files.DISAGREEMENT | changes]}


ENERGY = files.ENERGY
REFUSED = {
    "a duration of nothing": {"replicas": [sample(durations_ns=[5, 0])]},
    "a negative duration": {"replicas": [sample(durations_ns=[5, -5])]},
    "a duration of a year": {"replicas": [sample(durations_ns=[3 * 10**16])]},
    "half a duration": {"replicas": [sample(durations_ns=[1.5])]},
    "no iterations": {"replicas": [sample(iterations=0)]},
    "a count too few": {"replicas": [sample(durations_ns=[5, 6], counts=[1])]},
    "an end before its start": {"replicas": [sample(start_ns=10, end_ns=9)]},
    "a replica too many": {"replicas": [sample(), sample(replica=1)]},
    "a negative repeat": {"repeat": -1},
    "a repeat beyond counting": {"repeat": 10**30},
    "an unknown status": {"status": "great"},
    "a wall time of ages": {"wall_s": 1e308},
    "a negative wall time": {"wall_s": -1.0},
    "more right than labelled": {"parity": RECORDS[0]["parity"] | {"correct": 1000}},
    "more shown than disagree": {
        "parity": RECORDS[0]["parity"] | {"disagreeing": 0},
    },
    "a picture that is none": {"parity": shown(thumbnail="/9j/x' onerror='alert(1)")},
    "a picture that is huge": {"parity": shown(thumbnail="/9j/" + "A" * 8192)},
    "a picture of another kind": {"parity": shown(thumbnail="PHN2Zz4=")},
    "a score above one": {"parity": shown(score=1e308)},
    "an agreement above one": {"parity": RECORDS[0]["parity"] | {"top1_agreement": 1.5}},
    "a batch of nothing": {"cell": RECORDS[0]["cell"] | {"batch_size": 0}},
    "an unknown field of the cell": {"cell": RECORDS[0]["cell"] | {"cost": 0}},
    "an option of 400 digits": {"cell": RECORDS[0]["cell"] | {"options": {"x": 10**400}}},
    "a fact of 400 digits": {"facts": {"x": [10**400]}},
    "telemetry that is none": {"telemetry": {"gpus": 3}},
    "a clock that is a word": {"telemetry": {"cpu": {"mhz": {"min": "fast", "max": 1}}}},
    "a reading that is a word": {"telemetry": {"gpus": [{"series": {"sm_mhz": ["fast"]}}]}},
    "energy below nothing": {"telemetry": {"energy": ENERGY | {"joules": -1.0}}},
    "energy in no time": {"telemetry": {"energy": ENERGY | {"seconds": 0.0}}},
    "energy from nowhere": {"telemetry": {"energy": ENERGY | {"source": "guessed"}}},
    "energy of half a form": {"telemetry": {"energy": {"joules": 1.0}}},
    "idle power that is a word": {"telemetry": {"energy": ENERGY | {"idle_watts": "low"}}},
    "memory of no size": {"telemetry": {"gpus": [{"own_memory_bytes_peak": -4096}]}},
    "flags that are none": {"flags": "DRIFT"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_run_could_have_written_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    bad = RECORDS[0] | REFUSED[name]
    files.write(tmp_path / "records.jsonl", HEADER, [RECORDS[1], bad, RECORDS[2]])
    told(*gpubench("report", tmp_path)[::2], f"{tmp_path / 'records.jsonl'}, line 3: ")


def test_two_replicas_of_the_same_number(tmp_path: Path) -> None:
    n, r = next((n, r) for n, r in enumerate(RECORDS) if len(r["replicas"]) == 2)
    twice = r | {"replicas": [r["replicas"][0]] * 2}
    files.write(tmp_path / "records.jsonl", HEADER, [*RECORDS[:n], twice])
    told(*gpubench("report", tmp_path)[::2], f"line {n + 2}: two replicas have the same number")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "environment",
    [
        {"cpu": "fast"}, {"os": {"kernel": 6}}, {"gpus": 1}, {"limits": {"cpus": "?"}},
        {"directory": {"commit": 1}}, {"a": nested(100)}, {"a": 10**400},
    ],
)  # fmt: skip
def test_headers_of_another_shape_are_refused(environment: Any, tmp_path: Path) -> None:
    files.write(tmp_path / "records.jsonl", HEADER | {"environment": environment}, RECORDS)
    told(*gpubench("report", tmp_path)[::2], "records.jsonl, line 1: ")


@pytest.mark.parametrize("depth", [900, 100_000])
@pytest.mark.parametrize("kind", ["header", "record"])
def test_brackets_without_end(kind: str, depth: int, tmp_path: Path) -> None:
    body = json.dumps(HEADER if kind == "header" else RECORDS[0]).encode()
    body = body[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"
    lines = [files.line("header", HEADER), files.line("record", body)]
    (tmp_path / "records.jsonl").write_bytes(
        b"".join(lines if kind == "record" else [files.line("header", body)])
    )
    code, _, err = gpubench("report", tmp_path)
    if depth > 900:
        told(code, err, f"line {1 + (kind == 'record')}")


def test_a_second_header_is_no_record(tmp_path: Path) -> None:
    path = files.write(tmp_path / "records.jsonl", HEADER, RECORDS[:1])
    path.write_bytes(path.read_bytes() + files.line("header", HEADER))
    told(*gpubench("report", tmp_path)[::2], "line 3: this is not a line with a record")


def test_an_ab_with_more_pairs_than_its_rule_allows(tmp_path: Path) -> None:
    """The exact test of thousands of pairs would take hours: no later one counts."""
    for (header, records), arm in zip(ARMS, ("baseline", "candidate"), strict=True):
        key = records[0]["cell"]
        more = [
            r | {"repeat": n, "stage": "screen"}
            for n, r in enumerate([x for x in records if x["cell"] == key] * 50)
        ]
        files.write(tmp_path / arm / "records.jsonl", header, more)
    code, out, error = gpubench("compare", tmp_path)
    assert (code, error) == (1, "")
    assert "REGRESSED" in out


def test_a_fingerprint_is_no_path(tmp_path: Path) -> None:
    """The A/A history lies in a folder named by it: a file must not choose which."""
    evil = tmp_path / "evil"
    files.write(evil / "x.jsonl", HEADER, RECORDS)
    run = files.write(
        tmp_path / "run" / "records.jsonl", HEADER | {"fingerprint": str(evil)}, RECORDS
    )
    (evil / "x.jsonl").write_bytes(b"junk\n")
    _, _, err = gpubench("compare", run, run, "--cache-dir", tmp_path / "cache")
    assert "junk" not in err
    assert "left out" not in err


def test_huge_strings_are_cut_on_the_terminal(tmp_path: Path) -> None:
    huge = RECORDS[1] | {"reason": "why? " * 500_000}
    files.write(tmp_path / "records.jsonl", HEADER, [huge])
    code, out, _ = gpubench("report", tmp_path)
    assert code == 0
    assert len(out) < 100_000


def test_reading_is_unchanged_by_the_checks(place: Path) -> None:
    assert len(read(place / "good").records) == len(RECORDS)
    assert read(place / "good").notes == [
        "images skipped: 1 of 3: 1 truncated",
        "no accuracy: 4 folders",
    ]
