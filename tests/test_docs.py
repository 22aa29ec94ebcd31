"""What the documents say about suites, commands and backends is true."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from gpubench import plugins
from gpubench.analysis.compare.verdicts import VERDICTS
from gpubench.analysis.tables.pipeline import NAMES
from gpubench.backends import base
from gpubench.cli.main import cli
from gpubench.pipeline.decoders import base as decoders
from gpubench.records.record import FAILURES, FLAGS
from gpubench.report import exports, frames
from gpubench.run import availability
from gpubench.suite import file as suite_file
from gpubench.suite import grid
from gpubench.suite.gate import METRICS
from gpubench.suite.types import Axes, Policy, Preprocess, Workload

ROOT = Path(__file__).parent.parent
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "reports/README.md")
EVERYTHING = (*DOCUMENTS, "SECURITY.md", *PAGES)
TODAY = all(
    plugins.serves(version(name), f">={least}")
    for name, least in (("click", "8.2"), ("rich", "15"))
)
made_today = pytest.mark.skipif(not TODAY, reason="made with click 8.2 and rich 15, or newer")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def reference() -> ModuleType:
    """docs/reference.py, which makes the tables."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def site(name: str) -> str:
    """A page as the site has it, with its tables."""
    made: str = reference().filled(text(name))
    return made


def section(markdown: str, heading: str) -> str:
    """What stands below a heading, its sub-sections too."""
    (found,) = re.finditer(rf"^(#+) {re.escape(heading)}$", markdown, re.M)
    rest = markdown[found.end() :]
    end = re.search(
        rf"^#{{1,{len(found[1])}}} ", re.sub(r"```.*?```", blanked, rest, flags=re.S), re.M
    )
    return rest[: end.start()] if end else rest


def blanked(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def rows(markdown: str) -> dict[str, list[str]]:
    """Tables whose first column is code: the first column without backticks -> the others."""
    cells = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in markdown.splitlines()
             if line.startswith("| `")]  # fmt: skip
    return {first.strip(" `"): [c.strip() for c in rest] for first, *rest in cells}


def fenced(name: str, *languages: str) -> list[str]:
    """Blocks of a page in one of the languages."""
    found = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", text(name), re.M | re.S)
    return [body for language, body in found if language in languages]


# ------------------------------------------------------------------------------ the tables


def test_every_marker_is_known_and_every_table_is_shown() -> None:
    asked = [m for page in PAGES for m in reference().MARKER.findall(text(page))]
    lines = sum(text(page).count("<!-- generated") for page in PAGES)
    assert sorted(asked) == sorted(reference().BLOCKS)
    assert lines == len(asked)  # none is misspelt


def test_every_key_of_a_suite_is_described_with_its_default() -> None:
    documented = rows(site("docs/suites.md"))
    expected = {"description", "baseline", "exclude"}
    tables = {"workload": Workload, "workload.preprocess": Preprocess, "axes": Axes,
              "policy": Policy}  # fmt: skip
    for name, struct in tables.items():
        expected |= {f"{name}.{field}" for field in struct.__struct_fields__}
    expected |= {f"gate.{name}" for name in METRICS}
    keys = {key for key in documented if key in expected or "." in key}
    assert keys == expected
    policy, work = Policy(), Workload()
    for key in keys:
        default, takes, meaning = documented[key]
        assert takes
        assert meaning
        plain = re.fullmatch(r"`([\d.]+|\".*\")`", default)
        if plain and not key.startswith("axes."):
            holder: Any = policy if key.startswith("policy.") else work
            assert tomllib.loads(f"x = {plain[1]}")["x"] == getattr(holder, key.split(".")[1]), key
    with_default = [k for k in keys if k.startswith("policy.") and "`" in documented[k][0]]
    assert len(with_default) == len(Policy.__struct_fields__) - 4  # by precision, or none


def test_the_shipped_suites_are_described() -> None:
    names = {p.stem for p in suite_file.shipped()}
    body = text("docs/suites.md")
    assert {n for n in names if f"| `{n}` |" in body or f"| `{n}`" in body} == names
    assert names <= set(rows(site("docs/suites.md")))


def test_the_backends_and_decoders_are_listed_with_their_options() -> None:
    ours = {n for n in base.names() if type(base.get(n)).__module__.startswith("gpubench.backends")}
    page = site("docs/backends.md")
    assert set(rows(page.split("## An example")[0])) == ours
    for name in ours:
        options = {o.name: o for o in base.get(name).options}
        shown = rows(section(page, name)) if options else {}
        assert set(shown) == set(options), name
        for option, (_, values, tried, meaning) in shown.items():
            assert meaning == " ".join(options[option].help.split()).replace("|", "\\|")
            for value in (*options[option].choices, *options[option].search):
                assert reference().code(value) in f"{values} {tried}"
    found = [n for n in decoders.names()
             if type(decoders.get(n)).__module__.startswith("gpubench.decoders")]  # fmt: skip
    assert set(found) <= set(rows(site("docs/pipeline.md")))


def test_what_is_said_of_backends_by_hand_names_each_once() -> None:
    head = text("docs/backends.md").split("## An example")[0]
    ours = {n for n in base.names() if type(base.get(n)).__module__.startswith("gpubench.backends")}
    assert set(rows(head)) == ours


def test_flags_failures_and_exports_are_described() -> None:
    results = rows(site("docs/reading-results.md"))
    assert {**FLAGS, **FAILURES}.keys() <= results.keys()
    told = rows(section(text("docs/ab-and-ci.md"), "Exports"))
    assert {name for key in told for name in key.split("`, `")} == set(exports.FORMATS)


def test_every_column_of_a_notebook_is_described_once() -> None:
    told = re.findall(
        r"^\| (`.*?) \|", section(text("docs/reading-results.md"), "In a notebook"), re.M
    )
    named = [name for line in told for name in re.findall(r"`(\w+)`", line)]
    assert sorted(named) == sorted(frames.COLUMNS)


@made_today
def test_every_command_and_option_is_described() -> None:
    page = site("docs/commands.md")
    for name, command in reference().commands():
        body = section(page, name)
        assert f"](#{name.replace(' ', '-')})" in page
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[0]}`" in body, (name, parameter.opts)
    walked = {words.split()[1] for words, _ in reference().commands()}
    assert walked == set(cli.commands)


def test_other_tools_words_are_given_for_every_command_option_key_column_and_flag() -> None:
    body = section(text("docs/glossary.md"), "The same thing elsewhere")
    named = set(re.findall(r"`([^`]+)`", body))
    wanted = {*cli.commands, *reference().suite_keys(), *FLAGS, *VERDICTS, *columns()}
    wanted |= {o.name for b in reference().shipped_backends() for o in b.options}
    wanted |= {o for _, command in reference().commands() for p in command.params
               if isinstance(p, click.Option) and not p.hidden for o in p.opts}  # fmt: skip
    assert wanted - named == set()


def columns() -> set[str]:
    """Of all tables, by their names in the code."""
    said = re.compile(r'\b(?:Column|Gauge)\("([^"]+)"')
    analysis = ROOT / "gpubench/analysis"
    files = [*(analysis / "tables").glob("*.py"), analysis / "telemetry.py"]
    found = {name for path in files for name in said.findall(path.read_text("utf-8"))}
    assert {"p50", "bound by", "host memory"} <= found
    return found | set(NAMES.values())


# ------------------------------------------------------------------------------ what is written


def test_the_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= 150


def test_the_readme_has_what_remedies_send_people_to() -> None:
    """'README, GPU installation', in the remedies of doctor and of the TensorRT backend."""
    body = section(text("README.md"), "GPU installation")
    assert "--extra tensorrt-rtx" in body
    assert "(docs/backends.md#cuda)" in body


def command_lines(name: str) -> Iterator[str]:
    """Those in code blocks and between backticks."""
    for body in fenced(name, "bash", "console", "sh"):
        for line in body.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\||;|\$\(|\)\"", line.split("#")[0]):
                if found := re.search(r"(?:^|\s)(gpubench [a-z].*)", part):
                    yield found[1]
    for block in re.findall(r"^    (?:uv run )?(gpubench [a-z].*)", text(name), re.M):
        yield block.split("#")[0]
    outside = re.sub(r"```.*?```", "", text(name), flags=re.S)
    for found in re.findall(r"`(?:uv run )?(gpubench [a-z][^`\n]*)`", outside):
        yield found


@pytest.mark.parametrize("name", [n for n in EVERYTHING if "gpubench " in text(n)])
def test_commands_parse(name: str) -> None:
    for line in command_lines(name):
        line = re.split(r"[>|]|\.\.\.", line)[0]
        parse(shlex.split(line))


def parse(words: list[str]) -> None:
    """Resolve command and options as click does, and run nothing.

    A command that is only named (`gpubench tune`) may lack its arguments.
    """
    _, command, *rest = words
    assert command in cli.commands, words
    at: click.Command = cli.commands[command]
    if isinstance(at, click.Group):
        at = at.commands[rest.pop(0)]
    context = click.Context(at, resilient_parsing=not rest)
    options, left, _ = at.make_parser(context).parse_args(list(rest))
    assert not left, words
    for parameter in at.params:
        value = options.get(parameter.name or "")
        if isinstance(value, str) and isinstance(parameter.type, click.Choice):
            parameter.type.convert(value, parameter, context)


def test_a_wrong_command_line_does_not_parse() -> None:
    for words in ("gpubench rnu quick", "gpubench run quick extra", "gpubench list things"):
        with pytest.raises((AssertionError, click.UsageError)):
            parse(words.split())
    with pytest.raises(click.UsageError):
        parse(["gpubench", "run", "quick", "--batchsize", "8"])


def test_there_are_commands_to_check() -> None:
    assert sum(1 for name in EVERYTHING for _ in command_lines(name)) > 100


def test_overrides_named_in_the_documents_exist() -> None:
    sentence = section(text("docs/suites.md"), "On the command line").split("Lists are")[0]
    known = {o for parameter in cli.commands["run"].params for o in parameter.opts}
    named = set(re.findall(r"--[a-z-]+", sentence))
    assert named <= known
    assert len(named) == 21


@pytest.mark.parametrize("name", [n for n in EVERYTHING if fenced(n, "toml")])
def test_suites_in_the_documents_are_valid(name: str, tmp_path: Path) -> None:
    for n, body in enumerate(fenced(name, "toml")):
        if "[project" in body or "[build-system]" in body:
            continue
        path = tmp_path / f"suite{n}.toml"
        path.write_text(body, encoding="utf-8")
        suite = suite_file.load(str(path), availability.catalog())
        assert grid.expand(suite, "cpu", 2)


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_keys_and_options_named_in_prose_exist(name: str) -> None:
    prose = re.sub(r"```.*?```", "", text(name), flags=re.S)
    known = set(reference().suite_keys())
    for key in re.findall(r"`((?:workload|axes|policy)\.\w+)`", prose):
        assert key in known, key
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", re.sub(r"\|.*\|", "", prose)))
    ours = {o for _, command in reference().commands() for p in command.params for o in p.opts}
    foreign = {"--benchmark-compare-fail", "--benchmark-disable", "--gpubench-require", "--no-dev",
               "--count", "--group", "--extra", "--gpus", "--strict", "--help",
                "--rm", "--cpus", "--cpuset-cpus",
                "--runslow", "--use-train-size"}  # fmt: skip
    assert named - ours - foreign == set()


@pytest.mark.parametrize("name", EVERYTHING)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text(name), flags=re.S)):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(path: Path) -> set[str]:
    """Of a Markdown file: its headings as GitHub and the site name them, and what is given."""
    body = path.read_text(encoding="utf-8")
    given = re.findall(r"\{ #([\w-]+) \}|<a id=\"([\w-]+)\"", body)
    headings = re.findall(r"^#+ (.*?)(?: \{.*)?$", re.sub(r"```.*?```", "", body, flags=re.S), re.M)
    slugs = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
    return slugs | {name for pair in given for name in pair if name}


def test_contributing_shows_the_example_that_is_tested() -> None:
    example = ROOT / "tests/data/thirdparty_backend"
    for path in (example / "gpubench_onnx_reference.py", example / "pyproject.toml"):
        assert path.read_text(encoding="utf-8").rstrip() in text("CONTRIBUTING.md"), path.name
        assert path.read_text(encoding="utf-8").rstrip() in site("docs/plugins.md"), path.name


@pytest.mark.parametrize("name", [*EVERYTHING, "mkdocs.yml", "docs/reference.py"])
def test_no_addresses(name: str) -> None:
    assert not re.search(r"https?://", text(name))


def test_examples_are_filled_in() -> None:
    assert [page for page in ("README.md", *PAGES) if "@@" in text(page)] == []


@made_today
def test_what_the_readme_prints_is_what_the_reference_run_prints() -> None:
    """`uv run python docs/reference.py` writes it."""
    assert text("README.md") == reference().readme()
    assert len(reference().README.findall(text("README.md"))) == 1


# ------------------------------------------------------------------------------ the site


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="uv sync --group docs")
    pytest.importorskip("material", reason="uv sync --group docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8")
             for path in tmp_path.rglob("*.html")}  # fmt: skip
    assert {page.replace("docs/", "").replace(".md", ".html") for page in PAGES} <= set(pages)
    for name, body in pages.items():
        assert "<!-- generated" not in body, name
        # nothing that a browser would fetch
        assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?https?:", body), name
