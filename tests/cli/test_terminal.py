"""Files that commands write with ``-o``."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.cli.terminal import save
from gpubench.errors import InputError


def test_a_link_is_written_through_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "report.html", tmp_path / "report.html"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    save(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["report.html", "report.html", "there"]


def test_what_cannot_be_written_is_bad_input_and_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(InputError, match="file/below: cannot be written"):
        save(tmp_path / "file" / "below", "new")
    assert (tmp_path / "file").read_text() == "old"
