"""Suite files and command lines, from noise to almost right: never a traceback, never a hang."""

from __future__ import annotations

import json
import math
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubench import plugins
from gpubench.errors import SuiteError
from gpubench.run import availability
from gpubench.suite import file, grid
from gpubench.suite.types import Catalog
from tests.hostile.commands import commanding, fuzz, gpubench, told

SHIPPED = [path.read_text(encoding="utf-8") for path in file.shipped()]
KEYS = [
    *("workload", "axes", "policy", "exclude", "baseline", "description", "model", "weights"),
    *("images", "backend", "device", "precision", "batch_size", "replicas", "cores", "scenario"),
    *("boundary", "dispatch", "options", "null", "torch-eager", "repeats", "duration_s", "seed"),
]
GOOD = ["null", "torch-eager", "resnet18", "probe", "digits", "fp32", "latency", "compute", "cpu"]
NUMBERS = [0, 1, 2, 8, -1, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, -0.0, math.inf, math.nan]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return availability.catalog()


def loads(path: Path, catalog: Catalog, **overrides: Any) -> None:
    """A suite, or an error that names the file."""
    try:
        suite = file.load(str(path), catalog, overrides)
        grid.expand(suite, "cpu", 4)
    except SuiteError as error:
        said = str(error)
    else:
        said = path.stem
    assert path.stem in said or "--" in said


# ------------------------------------------------------------------------------ files


@fuzz(150)
@given(
    body=st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "replace"))
)
def test_noise(body: bytes, tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.toml"
    path.write_bytes(body)
    loads(path, catalog)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A shipped suite with some of its lines moved, doubled, cut or mixed with another's."""
    lines = draw(st.sampled_from(SHIPPED)).splitlines()
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        what = draw(st.integers(0, 5))
        if what == 0:
            del lines[at]
        elif what == 1:
            lines.insert(draw(st.integers(0, len(lines))), line)
        elif what == 2:
            lines[at] = line[: draw(st.integers(0, len(line)))]
        elif what == 3:
            key = line.partition("=")[0]
            lines[at] = f"{key}= {toml(draw(values()))}"
        elif what == 4:
            cut = draw(st.integers(0, len(line)))
            lines[at] = line[:cut] + draw(st.characters()) + line[cut:]
        else:
            lines[at] = draw(st.sampled_from(KEYS)) + "=" + line.partition("=")[2]
        lines = lines or [""]
    return "\n".join(lines)


def values() -> st.SearchStrategy[Any]:
    plain = st.one_of(
        st.sampled_from(GOOD),
        st.sampled_from(NUMBERS),
        st.booleans(),
        st.text(max_size=12),
        st.datetimes(),
        st.integers(),
        st.floats(),
    )
    return st.recursive(
        plain,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner, max_size=4)
        ),
        max_leaves=8,
    )


def toml(value: Any) -> str:
    """As TOML; strings basic and quoted, tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(escaped(c) for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def escaped(c: str) -> str:
    n = ord(c)
    if 0xD800 <= n < 0xE000:
        return "?"
    return c if c.isalnum() else f"\\U{n:08x}"


@fuzz(150)
@given(text=mutated())
def test_mutated_suites(
    text: str, tmp_path_factory: pytest.TempPathFactory, catalog: Catalog
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutant.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    loads(path, catalog)


@fuzz(200)
@given(
    table=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), values(), max_size=5),
    axes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), values(), max_size=5),
    backend=values(),
)
def test_structured_suites(
    table: dict[str, Any],
    axes: dict[str, Any],
    backend: Any,
    tmp_path_factory: pytest.TempPathFactory,
    catalog: Catalog,
) -> None:
    path = tmp_path_factory.getbasetemp() / "made.toml"
    whole = {"axes": {"backend": "null"} | axes} | table
    if isinstance(whole["axes"], dict) and "backend" not in axes:
        whole["axes"]["backend"] = backend
    path.write_text("\n".join(f"{toml(k)} = {toml(v)}" for k, v in whole.items()), encoding="utf-8")
    loads(path, catalog)


BIG = 2**20 - 200
NULL = '[axes]\nbackend = "null"\n'
SLOW = {
    "many equal names": f"[axes]\nbackend = {json.dumps(['null'] * 100_000)}",
    "many unknown names": f"[axes]\nbackend = {json.dumps([f'x{n}' for n in range(90_000)])}",
    "many numbers": f"{NULL}batch_size = {list(range(1, 130_000))}",
    "many tables": NULL + "[[exclude]]\nbatch_size = 7\n" * 30_000,
    "many cells and rules": f"{NULL}batch_size = {list(range(1, 4999))}\n"
    f"[[exclude]]\nbatch_size = {list(range(10_000, 10_999))}",
    "many exclusions multiplied": f"{NULL}[[exclude]]\nbatch_size = {list(range(1, 1000))}\n"
    f"replicas = {list(range(1, 1000))}\nreplicas_per_device = {list(range(1, 1000))}",
    "many replicas": f"{NULL}replicas = {list(range(1, 1025))}\n"
    f"replicas_per_device = {list(range(1, 1025))}",
    "a long key": f"{NULL}{'k' * BIG} = 1",
    "a long name": f'[axes]\nbackend = "{"n" * BIG}"',
    "a long number": f"{NULL}cores = {'9' * 4000}",
    "deep brackets": f"a = {'[' * 100_000}",
    "deep tables": f"[{'.'.join('abc' for _ in range(2000))}]",
    "dotted keys": ".".join("a" * 100_000) + " = 1",
}


@pytest.mark.parametrize("name", SLOW)
def test_what_would_keep_a_reader_busy(name: str, tmp_path: Path) -> None:
    path = tmp_path / "slow.toml"
    path.write_text(SLOW[name])
    begin = time.monotonic()
    code, _, err = gpubench("plan", path, "--cache-dir", tmp_path / "cache")
    told(code, err, "slow.toml")
    assert len(err) < 100_000
    assert time.monotonic() - begin < 15


def test_keys_with_commands_in_them_are_quoted(tmp_path: Path) -> None:
    path = tmp_path / "evil.toml"
    path.write_text('[axes]\nbackend = "null"\n"\\n::error::owned \\u001b[2J\\u202e" = 1\n')
    code, _, err = gpubench("plan", path)
    told(code, err, "evil.toml", r'axes."\n::error::owned \u001b[2J\u202e": unknown key')


def test_a_suite_may_not_name_what_no_record_can_hold(tmp_path: Path, catalog: Catalog) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    path = folder / "s.toml"
    path.write_text('[workload]\nimages = "pics"\n[axes]\nbackend = "null"\n')
    (folder / "pics").mkdir()
    with pytest.raises(SuiteError, match="not UTF-8"):
        file.load(str(path), catalog)
    code, _, err = gpubench("plan", path)
    told(code, err, r"caf\xe9", "not UTF-8 text; rename")


# ------------------------------------------------------------------------------ command lines


OPTIONS = [
    *("--backend", "--batch-size", "--replicas", "--replicas-per-device", "--dispatch"),
    *("--precision", "--scenario", "--boundary", "--device", "--model", "--weights", "--images"),
    *("--repeats", "--cell", "--require", "--decoder", "--loader", "--labels", "--calibration"),
]
AB_OPTIONS = ["--baseline", "--candidate", "--delta", "--alpha", "--budget", "--fail-on"]
words = st.one_of(
    st.sampled_from(
        [
            *GOOD,
            f"x={'9' * 5000}",
            f"x={'[' * 5000}",
            "1,8",
            "",
            ",",
            "0",
            "-1",
            "nan",
            "1e309",
            "9" * 4000,
            "a=b",
            "=",
            "~x",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.sampled_from(NUMBERS).map(str),
)


@fuzz(120)
@given(given_=st.lists(st.tuples(st.sampled_from(OPTIONS[:-1]), words), min_size=1, max_size=3))
def test_overrides(given_: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.getbasetemp() / "fuzz-cache"
    code, _, err = gpubench(
        "plan", "quick", "--cache-dir", cache, *(w for pair in given_ for w in pair)
    )
    assert code in (0, 2)
    if code:
        told(code, err)


@fuzz(80)
@given(given_=st.lists(st.tuples(st.sampled_from(AB_OPTIONS), words), min_size=1, max_size=3))
def test_options_of_ab(given_: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # the output directory cannot be made, so that nothing ever runs
    fixed = ["-o", tmp_path / "file" / "x", "--cache-dir", tmp_path / "c"]
    fixed += ["--backend", "null,torch-eager"]
    code, _, err = gpubench("ab", "selftest", *fixed, *(w for pair in given_ for w in pair))
    told(code, err)


@pytest.mark.parametrize(
    "words",
    [
        ["report", "\x1b[2J"],
        ["report", "x" * 5000],
        ["list", "\x1b]0;owned\x07"],
        pytest.param(
            ["\x1b]0;owned\x07"],
            marks=pytest.mark.skipif(
                not plugins.serves(version("click"), ">=8.2"), reason="click shows its help, with 0"
            ),
        ),
        ["run", "no\n::error::such"],
        ["compare", ".", "\x9b31m"],
        ["history", "\u202egnirts"],
        ["export", "-f", "junit", "\r\x1b[A"],
        ["--\x1b[31m"],
        ["compare", ".", ".", "--delta", "\x1b[1m%"],
    ],
)
def test_what_is_said_back_does_not_act(words: list[str], tmp_path: Path) -> None:
    code, out, err = gpubench(*words)
    told(code, err)
    assert not out
    assert not commanding(err)
