"""Where the paths of a mark lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.pytest_plugin import marks


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("weights", "~/w.pt", "{home}/w.pt"),
        ("weights", "sub/w.pt", "{here}/sub/w.pt"),
        ("weights", "/abs/w.pt", "/abs/w.pt"),
        ("weights", "w.pt", "{here}/w.pt"),
        ("weights", "w.pt#ema", "{here}/w.pt#ema"),
        ("weights", "gone.pt", "gone.pt"),
        ("weights", "probe", "probe"),
        ("weights", "DEFAULT", "DEFAULT"),
        ("images", "pictures", "{here}/pictures"),
        ("images", "digits", "digits"),
        ("model", "net.onnx", "{here}/net.onnx"),
        ("model", "resnet18", "resnet18"),
    ],
)
def test_paths_are_relative_to_the_tests_file(
    key: str, value: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    for folder in ("pictures", "digits", "resnet18"):  # the last two are gpubench's words too
        (here / folder).mkdir(parents=True)
    for file in ("w.pt", "probe"):
        (here / file).touch()
    monkeypatch.setenv("HOME", str(home))
    mark = pytest.Mark("gpubench", ("tiny.toml",), {key: value}, _ispytest=True)
    suite, chosen = marks.read([mark], here)
    assert suite == str(here / "tiny.toml")
    assert chosen == {key: expected.format(home=home, here=here)}
