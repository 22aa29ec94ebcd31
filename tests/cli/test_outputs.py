"""Where commands write, in which format, and what they say of a place that is none."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from gpubench.cli import options
from gpubench.cli.main import cli
from gpubench.errors import GpubenchError
from gpubench.machine import cores
from gpubench.records.writer import Writer
from gpubench.report import by_ending, formatting
from gpubench.run.record_builder import claimed
from tests.hostile.commands import gpubench, told
from tests.report import make, make_pairs


@pytest.mark.parametrize(
    ("name", "form", "found"),
    [
        ("x.html", None, "html"),
        ("x.HTM", None, "html"),
        ("x.txt", None, "text"),
        ("x.markdown", None, "md"),
        ("x", None, "text"),
        ("x.pdf", "json", "json"),
    ],
)
def test_the_ending_names_the_format(name: str, form: str | None, found: str) -> None:
    assert by_ending(form, Path(name), ("text", "html", "md", "json")) == found


@pytest.mark.parametrize(
    "words",
    [
        ["ab", "ci", "--baseline", "a=b", "-q"],
        ["ab", "ci", "--baseline", "a=b", "-q", "--resume", "-o", "x", "--budget", "1m"],
        ["ab", "--output=x", "ci", "--baseline", "a=b", "--budget=1m", "-ox", "-q"],
        ["ab", "ci", "--resume", "--baseline", "a=b", "-qo", "x"],
    ],
)
def test_the_command_that_goes_on_is_the_one_that_was_given(words: list[str]) -> None:
    told = "gpubench ab ci --baseline a=b -q --resume -o 'my ab' --budget 236s"
    assert options.resumed(words, Path("my ab"), "--budget", "236s") == told


def test_every_option_without_a_value_is_known_to_who_repeats_a_command() -> None:
    repeated = [cli.commands[name] for name in ("run", "ab", "tune", "bisect", "fleet")]
    flags = {name for command in repeated for p in command.params
             if isinstance(p, click.Option) and p.is_flag for name in p.opts}  # fmt: skip
    assert flags - {"-q", "--ray"} == {*formatting.ALONE}  # the value of --ray may be left out


@pytest.mark.parametrize("command", ["report", "compare", "history"])
@pytest.mark.parametrize("ending", [".pdf", ".html.gz", ".parquet"])
def test_an_ending_of_no_format_is_refused_before_anything_is_read(
    command: str, ending: str, tmp_path: Path
) -> None:
    out = tmp_path / f"x{ending}"
    code, _, err = gpubench(command, tmp_path / "nowhere", "-o", out)
    told(code, err, f"no format ends in {out.suffix}; known endings: ", ".html", ".md", ".json")
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "begins"),
    [("x.html", "<!doctype html"), ("x", "<!doctype html"), ("x.md", "**"), ("x.json", "{")],
)
def test_compare_writes_what_the_ending_says(name: str, begins: str, tmp_path: Path) -> None:
    for file in make_pairs.arms([make.cell()], 8):
        assert file.header.pairing
        with Writer(tmp_path / file.header.pairing.arm, file.header) as writer:
            for record in file.records:
                writer.append(record)
    code, _, err = gpubench("compare", tmp_path, "-o", tmp_path / name, "--fail-on", "none")
    assert (code, err) == (0, "")
    body = (tmp_path / name).read_text()
    assert body.lower().startswith(begins)
    if begins == "{":
        assert json.loads(body)["comparisons"]


def test_runs_that_begin_in_one_second_have_directories_of_their_own(tmp_path: Path) -> None:
    place = tmp_path / "reports" / "ci-20260101T120000Z"
    found = [claimed(place) for _ in range(3)]
    assert [path.name for path in found] == [place.name, f"{place.name}-2", f"{place.name}-3"]
    assert all(path.is_dir() for path in found)
    assert (place.parent / ".gitignore").read_text().endswith("\n*\n")


def test_a_folder_of_runs_that_was_there_is_left_to_its_owner(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    claimed(tmp_path / "reports" / "ci-20260101T120000Z")
    assert not (tmp_path / "reports" / ".gitignore").exists()


def test_a_pipe_is_no_suite(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    code, _, err = gpubench("plan", tmp_path / "pipe.toml")
    told(code, err, "pipe.toml", "is not a regular file; give a .toml file")


def test_a_working_directory_that_is_gone_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> Path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(Path, "cwd", gone)
    code, _, err = gpubench("plan", "ci")
    told(code, err, "the working directory: No such file or directory; go to one that is there")


@pytest.mark.parametrize(
    "set_affinity",
    [
        lambda pid, wanted: None,  # the kernel leaves forbidden cores out
        lambda pid, wanted: os.close(-1),  # OSError: none is left
    ],
)
def test_a_cpuset_that_was_made_smaller_is_said(
    monkeypatch: pytest.MonkeyPatch, set_affinity: Callable[[int, object], None]
) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", set_affinity)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    cores.pin((0, 1))
    cores.pin(())
    with pytest.raises(GpubenchError, match=r"on cores 0-3, only 0-1 may be used now: the cpuset"):
        cores.pin((0, 1, 2, 3))
