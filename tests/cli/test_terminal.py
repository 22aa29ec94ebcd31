"""Files that commands write with ``-o``, and terminals that are not UTF-8."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpubench import escape
from gpubench.cli import main, terminal
from gpubench.errors import InputError
from gpubench.records.reader import read
from gpubench.records.writer import Writer
from gpubench.report import FORMATS, render, save
from tests.report import make


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


def write_run(directory: Path, run_id: str) -> str:
    """A run of one cell, with intervals; its directory."""
    made = make.run([make.cell()], run_id=run_id)
    directory.mkdir()
    with Writer(directory, made.header) as writer:
        for record in made.records:
            writer.append(record)
    return str(directory)


class Stream(io.TextIOWrapper):
    """A terminal of that encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    @property
    def shown(self) -> bytes:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, bytes, bytes]]:
    """command("latin-1", *words) -> exit code, and what stdout and stderr have."""

    def start(encoding: str, *words: str) -> tuple[int, bytes, bytes]:
        out, err = Stream(encoding), Stream(encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(sys, "argv", ["gpubench", *words])
            with pytest.raises(SystemExit) as end:
                main()
        assert isinstance(end.value.code, int)
        return end.value.code, out.shown, err.shown

    return start


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_any_terminal_shows_every_text(
    encoding: str, command: Callable[..., tuple[int, bytes, bytes]], tmp_path: Path
) -> None:
    one, two = (write_run(tmp_path / name, name) for name in ("one", "two"))
    shown = ""
    for words in (["report", one], ["history", str(tmp_path)], ["compare", one, two],
                  ["list", "backends"], ["report", str(tmp_path / "caf\u00e9\u2192")]):  # fmt: skip
        code, out, err = command(encoding, *words)
        assert code in (0, 2, 3), err
        shown += (out + err).decode(encoding)
    assert "Traceback" not in shown
    assert ("+-" if encoding == "ascii" else "\u00b1") in shown
    assert ("caf\\xe9->" if encoding == "ascii" else "caf\u00e9->") in shown


@pytest.mark.parametrize("form", FORMATS)
def test_a_document_is_utf_8_on_any_terminal(
    form: str, command: Callable[..., tuple[int, bytes, bytes]], tmp_path: Path
) -> None:
    one = write_run(tmp_path / "caf\u00e9", "one")
    code, out, _ = command("ascii", "report", one, "-f", form)
    assert code == 0
    text = render([read(one)], form)
    assert "\u00e9" in text or form == "csv"
    if form == "text":
        assert out == text.encode("ascii", escape.PLAIN)
    else:
        assert out == text.encode()


def test_what_a_terminal_lacks_is_written_in_ascii() -> None:
    stream = Stream("ascii")
    stream.reconfigure(errors=escape.PLAIN)
    stream.write("1 \u00b1 2 \u2026 \u2500\u00e9 \udce9")
    assert stream.shown == b"1 +- 2 ... -\\xe9 \\udce9"


def test_nothing_on_stderr_acts(capsys: pytest.CaptureFixture[str]) -> None:
    escape.tell("node \x1b[2Jevil: lost\n::error::forged")
    assert capsys.readouterr().err == "node \\x1b[2Jevil: lost\n: :error::forged\n"


def test_only_one_function_writes_to_stderr() -> None:
    """Text from outside is harmless there because nothing else in the package prints to it."""
    found = []
    for path in (Path(terminal.__file__).parents[1]).rglob("*.py"):
        text = path.read_text()
        if path.name != "escape.py" and ("err=True" in text or "file=sys.stderr)" in text):
            found.append(path.name)
    assert found == []


def test_python_m_gpubench(tmp_path: Path) -> None:
    """And it takes no module from the working directory, as Python does for "-m"."""
    (tmp_path / "click.py").write_text("open('ran', 'w')")
    words = [sys.executable, "-m", "gpubench", "--version"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("python -m gpubench, version")
    assert not (tmp_path / "ran").exists()


def test_what_is_for_a_closed_stderr_does_not_land_on_stdout() -> None:
    code = "from gpubench.cli import terminal\n" \
        "with terminal.waiting('building'): print('{}')"  # fmt: skip
    words = ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"


def test_what_takes_a_while_is_said_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with terminal.waiting("building ..."):
        assert capsys.readouterr() == ("", "building ...\n")
    assert capsys.readouterr() == ("", "")
