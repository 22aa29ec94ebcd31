"""What the documents say about suites, commands and backends is true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from gpubench import suitefile
from gpubench.backends import base
from gpubench.cli import cli
from gpubench.suite import Axes, Policy, Workload

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "reports/README.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(section: str) -> dict[str, list[str]]:
    """The table of a README section: first column without backticks -> the other columns."""
    body = text("README.md").split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("| `")]
    return {first.strip(" `"): [c.strip() for c in rest] for first, *rest in cells}


def test_readme_describes_every_key_of_a_suite_with_its_default() -> None:
    documented = rows("Suites")
    expected = {"description", "baseline", "exclude", "axes.options.BACKEND"}
    for section, struct in (("workload", Workload), ("axes", Axes), ("policy", Policy)):
        expected |= {f"{section}.{name}" for name in struct.__struct_fields__}
    assert set(documented) == expected - {"axes.options"}
    policy = Policy()
    for key, (default, _) in documented.items():
        value = getattr(policy, key.removeprefix("policy."), None)
        if key.startswith("policy.") and re.fullmatch(r"`[\d.]+`", default):
            assert float(default.strip("`")) == value, key


def test_readme_lists_the_shipped_suites() -> None:
    body = text("README.md")
    assert [p.stem for p in suitefile.shipped() if f"\n| {p.stem} |" not in body] == []


def test_readme_lists_the_backends() -> None:
    ours = {n for n in base.names() if type(base.get(n)).__module__.startswith("gpubench.backends")}
    assert set(rows("Backends")) == ours


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist_with_their_options(name: str) -> None:
    found = re.findall(r"(?:^    (?:uv run )?|`)(gpubench [a-z][^`\n#>|]*)", text(name), re.M)
    commands = [shlex.split(line.replace("...", "")) for line in found]
    assert commands
    for _, command, *words in commands:
        assert command in cli.commands, command
        at: click.Command = cli.commands[command]
        if isinstance(at, click.Group):
            at = at.commands[words[0]]
        known = {o for parameter in at.params for o in parameter.opts} | {"--help", "--version"}
        assert {w for w in words if w.startswith("-")} <= known, words


def test_overrides_named_in_the_readme_exist() -> None:
    sentence = text("README.md").split("override a suite:")[1].split("Every command")[0]
    known = {o for parameter in cli.commands["run"].params for o in parameter.opts}
    named = set(re.findall(r"--[a-z-]+", sentence))
    assert named <= known
    assert len(named) == 17


@pytest.mark.parametrize("name", [*DOCUMENTS, "SECURITY.md"])
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text(name)):
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_contributing_shows_the_example_that_is_tested() -> None:
    example = ROOT / "tests/data/thirdparty_backend"
    for path in (example / "gpubench_onnx_reference.py", example / "pyproject.toml"):
        assert path.read_text(encoding="utf-8").rstrip() in text("CONTRIBUTING.md"), path.name


@pytest.mark.parametrize("name", [*DOCUMENTS, "SECURITY.md"])
def test_no_addresses(name: str) -> None:
    assert not re.search(r"https?://", text(name))
