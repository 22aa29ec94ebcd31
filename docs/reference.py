"""The tables of the documentation, made from the code when the site is built.

A page asks for one with a line `<!-- generated: NAME -->`; NAME is a key of `BLOCKS`. mkdocs calls
the hooks at the end (`hooks:` in mkdocs.yml). Whatever the documentation takes from gpubench is
imported here, and nowhere else in docs/.

`uv run python docs/reference.py` puts what the reference run prints now into README.md.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console

from gpubench import backends
from gpubench.analysis.compare.verdicts import CODES, VERDICTS
from gpubench.backends import base as _backends
from gpubench.cli.init import SERVICES
from gpubench.cli.main import cli
from gpubench.pipeline import decoders
from gpubench.pipeline.decoders import base as _decoders
from gpubench.records import reader, record
from gpubench.report import terminal
from gpubench.report.formatting import STATUSES
from gpubench.run import availability
from gpubench.suite import file as suite_file
from gpubench.suite.gate import METRICS
from gpubench.suite.schema import mistakes, say
from gpubench.suite.types import Axes, Catalog, Option, Policy, Preprocess, Workload
from gpubench.workload.parity import TOLERANCES

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["BLOCKS", "MARKER", "commands", "filled", "mistakes", "suite_keys"]

ROOT = Path(__file__).parent.parent
MARKER = re.compile(r"^<!-- generated: ([\w ./-]+) -->$", re.M)
DEFAULTS = {
    "baseline": "first backend",
    "workload.weights": '`"probe"`; `"file"` with an .onnx model',
    "policy.max_repeats": "`repeats`",
    "policy.max_relative_error": "by precision",
    "policy.min_top1_agreement": "by precision",
    "workload.preprocess": "",
    "axes.backend": "required",
    "axes.options": "",
}
"""Where the default is no plain value."""
ABROAD = ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "reports/README.md")
"""Documents of the repository that the site shows as well; so are those below `FOLDERS`."""
NOTEBOOKS = ROOT / "docs" / "notebooks"
FOLDERS = ("reports/reference/trust", "reports/reference/models")


# ------------------------------------------------------------------------------ Markdown


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; no cell breaks it."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def code(value: object) -> str:
    """As TOML would write it."""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


# ------------------------------------------------------------------------------ suites


def _catalog() -> Catalog:
    """Of gpubench itself; whatever else is installed here stays out."""
    found = {b.name: tuple(b.options) for b in shipped_backends()}
    return Catalog(found, availability.catalog().models, tuple(d.name for d in shipped_decoders()))


def suite_keys() -> dict[str, tuple[str, str, str]]:
    """Every dotted key of a suite -> its default, what it takes, what it means."""
    top = suite_file.schema(_catalog())["properties"]
    structs: dict[str, type[msgspec.Struct]] = {
        "workload": Workload,
        "workload.preprocess": Preprocess,
        "axes": Axes,
        "policy": Policy,
    }
    found = {key: _key(key, rule, {}) for key, rule in top.items() if key not in (*structs, "gate")}
    for section, struct in structs.items():
        defaults = {f.name: f.default for f in msgspec.structs.fields(struct)}
        rules: Mapping[str, Any] = {"properties": top}
        for part in section.split("."):
            rules = rules["properties"][part]
        for name, rule in rules["properties"].items():
            found[f"{section}.{name}"] = _key(f"{section}.{name}", rule, defaults)
    for name, rule in top["gate"]["properties"].items():
        margin = METRICS[name].margin * (100 if METRICS[name].points else 1)
        found[f"gate.{name}"] = f"{margin:g}", _takes(rule), rule["description"]
    return found


def _key(key: str, rule: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[str, str, str]:
    default = defaults.get(key.rpartition(".")[2], msgspec.NODEFAULT)
    if isinstance(default, tuple):
        default = default[0] if len(default) == 1 else default
    said = "" if default is msgspec.NODEFAULT or default is None else code(default)
    return DEFAULTS.get(key, said), _takes(rule), rule["description"]


def _takes(rule: Mapping[str, Any]) -> str:
    return {"object": "a table", "array": "tables"}.get(rule.get("type", ""), "") or say(dict(rule))


def _keys(section: str) -> str:
    """The table of one section; '': the keys at the top."""
    rows = [
        [f"`{key}`", *told]
        for key, told in suite_keys().items()
        if key.rpartition(".")[0] == section
    ]
    return table(["key", "default", "takes", "meaning"], rows)


def _suites() -> str:
    listed = [(path, suite_file.load(str(path), _catalog())) for path in suite_file.shipped()]
    return table(["suite", "what it measures"], [[f"`{p.stem}`", s.description] for p, s in listed])


def _tolerances() -> str:
    rows = [
        [f"`{p}`", f"{error:g}", f"{100 * top1:g} %"] for p, (error, top1) in TOLERANCES.items()
    ]
    return table(["precision", "largest relative error", "least top-1 agreement"], rows)


# ------------------------------------------------------------------------------ plug-ins


def shipped_backends() -> list[_backends.Backend]:
    """Those of gpubench itself, sorted by name."""
    found = [_backends.get(name) for name in _backends.names()]
    return [b for b in found if type(b).__module__.startswith(backends.__name__)]


def shipped_decoders() -> list[_decoders.Decoder]:
    """Those of gpubench itself, sorted by name."""
    found = [_decoders.get(name) for name in _decoders.names()]
    return [d for d in found if type(d).__module__.startswith(decoders.__name__)]


def _backend_table() -> str:
    return table(
        ["backend", "what it is"], [[f"`{b.name}`", b.summary] for b in shipped_backends()]
    )


def _decoder_table() -> str:
    rows = [
        [f"`{d.name}`", d.summary, "a CUDA device" if d.on_device else "the host"]
        for d in shipped_decoders()
    ]
    return table(["decoder", "what it is", "works on"], rows)


def _options() -> str:
    """A table of options for each backend that has any."""
    parts = []
    head = ["option", "default", "values", "`tune` tries", "meaning"]
    for backend in shipped_backends():
        if backend.options:
            rows = [_option(o) for o in backend.options]
            parts += [f"### {backend.name}", table(head, rows)]
    return "\n\n".join(parts)


def _option(o: Option) -> list[str]:
    values = ", ".join(code(v) for v in o.choices) or _range(o)
    tried = ", ".join(code(v) for v in o.search)
    tried += f" with {_when(o)}" if o.search and o.when else ""
    return [f"`{o.name}`", code(o.default), values, tried, o.help]


def _range(o: Option) -> str:
    words = {"bool": "`true`, `false`", "str": "text"}.get(o.kind, "a number")
    words += "" if o.minimum is None else f", at least {o.minimum:g}"
    return words + ("" if o.maximum is None else f", at most {o.maximum:g}")


def _when(o: Option) -> str:
    named = (f"{key} {' or '.join(map(str, values))}" for key, values in o.when.items())
    return " and ".join(named)


# ------------------------------------------------------------------------------ commands


def commands(group: click.Group = cli) -> Iterator[tuple[str, click.Command]]:
    """('gpubench cache info', its command) of every command, sorted."""

    def below(at: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
        for word, command in sorted(at.commands.items()):
            if isinstance(command, click.Group):
                yield from below(command, f"{name} {word}")
            else:
                yield f"{name} {word}", command

    yield from below(group, "gpubench")


def _commands() -> str:
    parts = []
    for name, command in commands():
        usage = f"{name} {' '.join(command.collect_usage_pieces(click.Context(command)))}"
        told, examples = _help(command)
        parts += [f"## {name}", *told, f"```text\n{usage}\n```"]
        rows = [_parameter(p) for p in command.params if isinstance(p, click.Option)]
        parts += [table(["option", "takes", "default", "meaning"], rows)] if rows else []
        parts += [f"```bash\n{line}\n```" for line in examples]
    return "\n\n".join(parts)


def _help(command: click.Command) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's help, and its examples."""
    whole = inspect.cleandoc(command.help or "").replace("\b", "")
    parts = [" ".join(part.split()) for part in whole.split("\n\n")]
    told = [part for part in parts if part and not part.startswith("Example:")]
    return told, [p.removeprefix("Example:").strip() for p in parts if p.startswith("Example:")]


def _parameter(p: click.Option) -> list[str]:
    told = p.help or ""
    told, _, said = told.partition("  [default: ")
    default = said.rstrip("]") or ("" if p.is_flag or not p.show_default else str(p.default))
    takes = "" if p.is_flag else p.make_metavar(click.Context(click.Command("x")))
    names = ", ".join(f"`{name}`" for name in p.opts)
    return [names, f"`{takes}`" if takes else "", f"`{default}`" if default else "", told]


def _command_list() -> str:
    """Name, linked to its section, and the first sentence of the help."""
    rows = [
        [f"[`{name}`](#{name.replace(' ', '-')})", command.get_short_help_str(limit=200)]
        for name, command in commands()
    ]
    return table(["command", "does"], rows)


# ------------------------------------------------------------------------------ examples

REFERENCE = ROOT / "reports/reference/quick-epyc-2core"
"""A run that is in the repository: what is shown of it is made by the code as it is now."""
WIDTH = 120
SHOWN = ("Latency per batch",)
GROUP = re.compile(r"batch \d+, .*replicas?$")
"""The head of a group of the summary's rows."""
SHOWN_GROUPS = ("batch 1, 1 replica",)


def example_summary() -> str:
    """What `gpubench run` printed at the end of the reference run."""
    console = Console(width=WIDTH, color_system=None, file=io.StringIO())
    with console.capture() as taken:
        console.print(terminal.summary([_reference()]))
    return trimmed(taken.get())


def example_readme() -> str:
    """`example_summary`: its head, of its rows `SHOWN_GROUPS`, and its answer: for README.md."""
    lines, shown = [], True
    body, _, answer = example_summary().rpartition("\n\n")
    for line in body.splitlines():
        if GROUP.match(line):
            shown = line in SHOWN_GROUPS
        elif not line.startswith("  "):
            shown = not any(map(GROUP.match, lines))  # the head, before all groups
        if shown:
            lines.append(line)
    return "\n".join([*lines, "...", "", answer])


def example_report() -> str:
    """`gpubench report` of the reference run: the headline and the tables `SHOWN`."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        head, *tables = terminal.render([_reference()]).split("\n\n")
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    shown = [part for part in tables if part.startswith(SHOWN)]
    return trimmed("\n\n".join([head, *shown, "..."]))


def _reference() -> record.RecordFile:
    return reader.read(REFERENCE)


def trimmed(printed: str) -> str:
    """Without blanks at the ends of lines, and without empty lines around."""
    return "\n".join(line.rstrip() for line in printed.splitlines()).strip("\n")


LANGUAGES = {".py": "python", ".yml": "yaml", "": "groovy"}
"""Of a file's ending, where it is not the ending itself; '': Jenkinsfile."""


def _file(name: str) -> Callable[[], str]:
    """A file of the repository, whole."""
    path = ROOT / name
    language = LANGUAGES.get(path.suffix, path.suffix.lstrip("."))
    body = path.read_text("utf-8").rstrip()
    return lambda: f'```{language} title="{path.name}"\n{body}\n```'


def _fenced(made: Callable[[], str]) -> Callable[[], str]:
    return lambda: f"```text\n{made()}\n```"


# ------------------------------------------------------------------------------ all of them


def _named(values: Mapping[str, str], what: str) -> str:
    return table([what, "meaning"], [[f"`{name}`", told] for name, told in values.items()])


FILES = (
    "suites/quick.toml",
    "tests/data/thirdparty_backend/gpubench_onnx_reference.py",
    "tests/data/thirdparty_backend/pyproject.toml",
    *(f"gpubench/cli/ci/{file}" for file, _ in SERVICES.values()),
)


def _notebook(path: Path) -> str:
    """Its words, and its code as it is typed; what it gives differs from machine to machine."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        body = "".join(cell["source"])
        parts.append(body if cell["cell_type"] == "markdown" else f"```python\n{body}\n```")
    return "\n\n".join(parts)


BLOCKS: dict[str, Callable[[], str]] = {
    "keys top": lambda: _keys(""),
    "keys workload": lambda: _keys("workload"),
    "keys workload.preprocess": lambda: _keys("workload.preprocess"),
    "keys axes": lambda: _keys("axes"),
    "keys policy": lambda: _keys("policy"),
    "keys gate": lambda: _keys("gate"),
    "suites": _suites,
    "tolerances": _tolerances,
    "backends": _backend_table,
    "options": _options,
    "decoders": _decoder_table,
    "command list": _command_list,
    "commands": _commands,
    "flags": lambda: _named(record.FLAGS, "flag"),
    "failures": lambda: _named(record.FAILURES, "kind of failure"),
    "statuses": lambda: _named(STATUSES, "status"),
    "verdicts": lambda: _named(VERDICTS, "verdict"),
    "reasons": lambda: _named(CODES, "reason code"),
    "example summary": _fenced(example_summary),
    "example report": _fenced(example_report),
} | {f"file {name}": _file(name) for name in FILES}
BLOCKS |= {f"notebook {p.stem}": partial(_notebook, p) for p in sorted(NOTEBOOKS.glob("*.ipynb"))}


def filled(markdown: str) -> str:
    """``markdown`` with every marker replaced. Raises KeyError for an unknown one."""
    return MARKER.sub(lambda found: BLOCKS[found[1]](), markdown)


# ------------------------------------------------------------------------------ hooks of mkdocs


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Documents of the repository become pages of the site."""
    from mkdocs.structure.files import File

    found = [ROOT / name for name in ABROAD]
    found += [p for name in FOLDERS for p in sorted((ROOT / name).glob("*.*"))]
    for path in found:
        src = _place(path.relative_to(ROOT))
        if path.suffix == ".md":
            made = File.generated(config, src, content=_links(path.read_text("utf-8"), path))
        else:
            made = File.generated(config, src, abs_src_path=str(path))
        files.append(made)
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Tables, and links that lead out of docs/."""
    path = ROOT / "docs" / page.file.src_uri
    return _links(filled(markdown), path) if path.exists() else markdown


def _place(path: Path) -> str:
    """Where a document of the repository lies in the site."""
    return f"repository/{path.as_posix()}"


def _links(markdown: str, path: Path) -> str:
    """Relative links that lead to documents of the repository, as the site has them."""
    here = ROOT / "docs"
    inside = path.is_relative_to(here)
    start = path if inside else here / _place(path.relative_to(ROOT))

    def moved(found: re.Match[str]) -> str:
        link, _, anchor = found[1].partition("#")
        at = (path.parent / link).resolve()
        if not link or ":" in link or (inside and at.is_relative_to(here)):
            return found[0]
        goal = at if at.is_relative_to(here) else here / _place(at.relative_to(ROOT))
        way = Path(os.path.relpath(goal, start.parent)).as_posix()
        return f"]({way}{'#' if anchor else ''}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, markdown)


# ------------------------------------------------------------------------------ README.md

README = re.compile(r"(?<=^```text\n).*?(?=^```$)", re.M | re.S)
"""Its one block of output."""


def readme() -> str:
    """README.md with the reference run's output as it is printed now."""
    return README.sub(lambda _: f"{example_readme()}\n", (ROOT / "README.md").read_text("utf-8"))


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), "utf-8")
