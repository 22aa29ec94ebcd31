from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpubench import files
from gpubench.errors import InputError, SuiteError
from gpubench.run.serving import manifest
from gpubench.suite import toml_file


def test_a_file_is_new_or_takes_the_place_of_one(tmp_path: Path) -> None:
    new, private = tmp_path / "new", tmp_path / "private"
    private.touch(mode=0o600)
    before = os.umask(0o022)
    try:
        for path in (new, private):
            files.put(path, b"body")
    finally:
        os.umask(before)
    assert {p.name: (p.read_bytes(), p.stat().st_mode & 0o777) for p in tmp_path.iterdir()} == {
        "new": (b"body", 0o644),
        "private": (b"body", 0o600),
    }


@pytest.mark.parametrize("target", ["victim", "nothing"])
def test_a_link_planted_where_it_is_written_first_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Even where somebody knows the name."""
    victim, place = tmp_path / "victim", tmp_path / "shared"
    victim.write_text("theirs")
    place.mkdir()
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "known")
    (place / ".known.part").symlink_to(tmp_path / target)
    with pytest.raises(FileExistsError):
        files.put(place / "report.html", b"body")
    assert victim.read_text() == "theirs"
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".known.part", "shared", "victim"]


def test_a_link_of_somebody_else_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, link = tmp_path / "victim", tmp_path / "report.html"
    link.symlink_to(victim)
    files.put(link, b"mine")
    monkeypatch.setattr(files.os, "getuid", lambda: 10**6)
    with pytest.raises(OSError, match="somebody else"):
        files.put(link, b"theirs")
    assert victim.read_bytes() == b"mine"


def test_nobody_foresees_where_it_is_written_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    monkeypatch.setattr(
        files.os, "fsync", lambda _: seen.update(p.name for p in tmp_path.iterdir())
    )
    for _ in range(2):
        files.put(tmp_path / "r.html", b"body")
    assert len(seen - {"r.html"}) == 2


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / manifest.MANIFEST
    os.mkfifo(pipe)
    with pytest.raises(SuiteError, match=r"cannot be read: not a regular file"):
        toml_file.read(pipe, "space")
    with pytest.raises(InputError, match=r"not a regular file"):
        manifest.read(tmp_path)
    with pytest.raises(IsADirectoryError):
        files.opened(tmp_path)
