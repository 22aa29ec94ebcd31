"""The command that begins: `gpubench init` writes a suite for a network, and what runs it in CI.

Exit codes: 0 written; 2 bad input, or a file is there already: nothing was written.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from gpubench import escape, files
from gpubench.cli import options, terminal
from gpubench.errors import InputError
from gpubench.machine import software
from gpubench.suite.types import Workload, model_path, source_of, weights_file, with_path

TEMPLATES = Path(__file__).parent / "ci"
SERVICES = {
    "github": ("github.yml", ".github/workflows/speed{}.yml"),
    "github-comment": ("github-comment.yml", ".github/workflows/speed-comment{}.yml"),
    "gitlab": ("gitlab.yml", ".gitlab-ci.yml"),
    "buildkite": ("buildkite.yml", ".buildkite/pipeline{}.yml"),
    "jenkins": ("Jenkinsfile", "Jenkinsfile"),
    "shell": ("speed.sh", "speed{}.sh"),
}
"""What --ci takes -> file in `TEMPLATES`, and where it belongs below the repository's top; {}: ''
or, of a project in a folder of it, '-' and the folder."""
LIKE = "ci"
"""The shipped suite whose cores, scenario and policy a new one has."""
SLOW = ("aot-inductor", "torch-compile")
"""Backends that are left out unless asked for: they would compile for minutes at every change."""
BUDGET = "5m"
"""Of a first A/B, so that all of it ends within ten minutes."""
_PLAIN = re.compile(r"[\w./+-]+", re.ASCII)
"""A path that means itself in YAML, in Groovy and in a shell."""
_ASKED = ("--backend", "--batch-size", "--precision", "--device", "--weights", "--images",
          "--labels", "--calibration", "--preprocess", "--arguments",
          "--output-name")  # fmt: skip


@click.command()
@click.argument("model", required=False)
@click.option("--ci", "services", callback=options.words, metavar="SERVICE,...",
              help=f"Also what runs it for every change: {', '.join(SERVICES)}.")  # fmt: skip
@partial(options.selection, only=_ASKED)
@options.output_option(
    "The suite's file; '-' prints everything.", default="gpubench.toml", show_default=True
)
@options.cache_option
def init(
    model: str | None,
    services: list[str] | None,
    output: Path | None,
    cache_dir: Path | None,
    **chosen: Any,
) -> None:
    """Write a suite that tells whether MODEL became slower, and what runs it for every change.

    MODEL is what `gpubench inspect` takes, or a suite's file, for --ci alone; without it, the only
    .onnx or .pt2 file here. What is there already is never written over.

    Example: gpubench init model.py:build --ci github
    """
    model = model or _only_model()
    there = model.endswith(".toml")
    suite = Path(model) if there else output or Path("gpubench.toml")
    made = {path: body for name in services or () for path, body in [_service(name, suite)]}
    if output:
        _check_new([*([] if there else [suite]), *made], suite)
    if there and not made:
        raise InputError(f"{model} is a suite already; --ci github writes what runs it")
    notes: list[str] = []
    if not there:
        body, notes = _suite(model, chosen, suite.parent, cache_dir)
        made = {suite: body} | made
    if output is None:
        for path, body in made.items():
            terminal.write(f"#---- {path}\n{body}", document=True)
        return
    with _written(made):
        cost = _cost(suite, cache_dir)
    extras = ["cuda" if chosen.get("device") == "cuda" else "cpu"]
    extras += [kind for kind in ("hf", "timm") if source_of(model) == kind]
    lines = [*map(str, made), *(f"note: {note}" for note in (*notes, *_unknown_to_git(suite)))]
    terminal.write("\n".join([*lines, cost, *_next(made, suite, extras)]) + "\n")


def _only_model() -> str:
    found = sorted(str(p) for ending in ("*.onnx", "*.pt2") for p in Path().glob(ending))
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"which model? here {'are ' + ', '.join(found) if found else 'is no .onnx or .pt2 file'}; "
        "name a file, model.py:build, or a name: gpubench init resnet50"
    )


# ------------------------------------------------------------------------------ the suite


def _suite(
    model: str, chosen: Mapping[str, Any], folder: Path, cache_dir: Path | None
) -> tuple[str, list[str]]:
    """The file's text, and what its author should know. Raises what `gpubench inspect` does."""
    from gpubench.run import availability, setup
    from gpubench.run import inspect as inspecting
    from gpubench.suite import file
    from gpubench.suite.as_toml import table

    words = {k: v for k, v in chosen.items() if v is not None} | {"model": model}
    words["device"] = words.get("device", "cpu")
    words |= {"output": words.pop("output_name")} if "output_name" in words else {}
    asked = setup.of_words(words)
    own, batch = "fp32", 1
    if find_spec("torch"):
        with terminal.waiting("building the network, in a process of its own ..."):
            found = inspecting.inspect(words, cache_dir)
        net = found.network
        own, batch = net.precision, net.batch or 1
        takers = {t.backend: t.why for t in found.backends}
        takers |= {t.backend: "" for t in found.backends if own in t.precisions}
        said = [
            f"{net.kind}: {' x '.join(map(str, net.input_shape))}, {net.classes:,} {net.answers}",
            f"pictures: {net.preprocessing}",
        ]
        notes = [f"pictures: {net.preprocessing}; what it was trained with belongs into "
                 "[workload.preprocess]"] if "assumed" in net.preprocessing else []  # fmt: skip
    else:
        takers = availability.refusals(asked, words["device"])
        said = ["Written where torch is not installed: the network was not looked at."]
        notes = ["torch is not installed here: the network was not looked at"]
    backends = words.get("backend") or [n for n, no in takers.items() if not no and n not in SLOW]
    if not backends:
        why = "; ".join(f"{name}: {no}" for name, no in takers.items())
        raise InputError(f"no backend takes {model} on {words['device']} here: {why}")
    said += [f"{name} takes it too, and compiles for minutes first."
             for name in SLOW if name not in backends and takers.get(name) == ""]  # fmt: skip
    like = file.read(LIKE, availability.catalog()).data
    axes = {"backend": backends, "device": words["device"],
            "precision": words.get("precision", own),
            "batch_size": words.get("batch_size", batch)}  # fmt: skip
    axes |= {"cores": like["axes"]["cores"]} if words["device"] == "cpu" else {}
    head = [
        f"Is {model} slower after a change, and does it answer as before? [gate] takes accuracy,",
        "memory, size and more; `gpubench schema` lists all keys.",
        *said,
    ]
    parts = [
        "".join(f"# {escape.line(line)}\n" for line in head),
        table("workload", _work(asked.workload, words, folder)),
        table("workload.preprocess", words.get("preprocess", {})),
        table("workload.arguments", words.get("arguments", {})),
        table("axes", axes | {"scenario": like["axes"]["scenario"]}),
        table("policy", like["policy"]),
        table("gate", {"agreement": 1}),
    ]
    return "\n".join(part for part in parts if part), notes


def _work(work: Workload, words: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """What was said of the work, with paths as a suite in ``folder`` has them."""
    found = {}
    for key in ("model", "weights", "output", "images", "labels", "calibration"):
        if key not in words:
            continue
        value = getattr(work, key)
        path = _path(key, value)
        if path and Path(path).is_absolute():
            placed = os.path.relpath(path, folder.resolve())
            value = with_path(value, placed) if key == "model" else placed + value[len(path) :]
        found[key] = value
    return found


def _path(key: str, value: str) -> str:
    """The file or folder in a value of the workload; '': none."""
    if key == "weights":
        return weights_file(value)[0]
    return {"model": model_path(value), "output": ""}.get(key, value)


def _cost(suite: Path, cache_dir: Path | None) -> str:
    """How long it takes, as far as can be told; raises what is wrong with the suite."""
    from gpubench.run import plan_view, setup

    if not find_spec("torch"):
        return f"{setup.load(str(suite), {}).name}: gpubench plan tells how long it takes"
    return plan_view.as_ab(setup.session(str(suite), {}, cache_dir), BUDGET)


# ------------------------------------------------------------------------------ what runs it


def _service(name: str, suite: Path) -> tuple[Path, str]:
    """Where a service looks for its file, and the template with this project and suite in it."""
    if name not in SERVICES:
        raise InputError(f"--ci {name!r}: expected one of {', '.join(SERVICES)}")
    template, target = SERVICES[name]
    here = Path.cwd().resolve()
    if (top := _repository(here)) is None:
        raise InputError(f"--ci {name}: {here} is in no git repository; make one: git init")
    project = str(here.relative_to(top))
    values = {"PROJECT": project, "SUITE": os.path.relpath(suite, here)}
    text = (TEMPLATES / template).read_text("utf-8")
    folder = "" if project == "." else "-" + project.replace("/", "-")
    if "{}" in target:  # names of its own: of two with one name GitHub would cancel the other
        text = re.sub(r"\b([Ss]peed)\b", rf"\1{folder}", text)
    for key, value in values.items():
        if not _PLAIN.fullmatch(value):
            raise InputError(
                f"--ci {name}: {value!r} is written into a script, and may have letters, digits "
                "and . _ + - / only; rename it"
            )
        text = re.sub(rf'(\b{key}(?:: | = |=))"[^"\n]*"', rf'\g<1>"{value}"', text)
    return Path(os.path.relpath(top / target.format(folder), here)), text


def _repository(here: Path) -> Path | None:
    return next((p for p in (here, *here.parents) if (p / ".git").exists()), None)


def _unknown_to_git(suite: Path) -> Iterator[str]:
    """What another checkout would lack of the suite's files."""
    if (top := _repository(Path.cwd().resolve())) is None:
        return
    found = [suite.absolute(), *_named(suite)]
    outside = [p for p in found if not p.resolve().is_relative_to(top)]
    for path in outside:
        yield f"{path.resolve()} is outside the repository: other checkouts do not have it"
    for name in _ignored(top, [p for p in found if p not in outside]):
        yield f"git ignores {name}: other checkouts do not have it"


def _named(suite: Path) -> list[Path]:
    """Files and folders that it measures."""
    from gpubench.run import setup

    work = setup.load(str(suite), {}).workload
    keys = ("model", "weights", "images", "labels", "calibration")
    paths = (Path(_path(key, getattr(work, key))) for key in keys)
    return [path for path in paths if path.is_absolute() and path.exists()]


def _ignored(top: Path, paths: Sequence[Path]) -> list[str]:
    return _git(top, "check-ignore", "--", *map(str, paths))


def _git(top: Path, *words: str) -> list[str]:
    """The lines of its answer; none where it has none, or fails."""
    try:
        done = subprocess.run(software.git(top, *words), env=software.environ_of_git(),
                              capture_output=True, text=True, check=False)  # fmt: skip
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


# ------------------------------------------------------------------------------ writing


def _check_new(paths: Sequence[Path], suite: Path) -> None:
    """Raises InputError where one is there, also as a link that leads nowhere."""
    for path in paths:
        if not os.path.lexists(path):
            continue
        remedy = "to take over by hand what is new, print it with -o -"
        if path == suite:
            remedy = (
                f"another name: -o NAME.toml; for what runs it: gpubench init {path} --ci github"
            )
        raise InputError(f"{path} is there already, and nothing was written; {remedy}")


@contextmanager
def _written(made: Mapping[Path, str]) -> Iterator[None]:
    """All of the files; none of them, and none of their folders, if this or the block fails."""
    folders = {d for path in made for d in path.parents if not d.exists()}
    done: list[Path] = []
    try:
        for path, body in made.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.put(path, body.encode())
            except OSError as error:
                raise InputError(f"{path}: cannot be written: {error.strerror}") from error
            done.append(path)
        yield
    except BaseException:
        for path in done:
            path.unlink(missing_ok=True)
        for folder in sorted(folders, key=lambda d: -len(d.parts)):
            with suppress(OSError):
                folder.rmdir()
        raise


def _next(made: Mapping[Path, str], suite: Path, extras: Sequence[str]) -> Iterator[str]:
    """Commands, from here to a verdict; ``extras``: of gpubench, what the suite needs."""
    from gpubench.run.ab.interpreters import own_source

    by_uv = "UV_RUN_RECURSION_DEPTH" in os.environ or not shutil.which("gpubench")
    gpubench = "uv run gpubench" if by_uv else "gpubench"
    steps = []
    project = Path("pyproject.toml")
    if not project.is_file():
        steps += ["uv init --bare"]
    if not project.is_file() or not re.search(r"[\"']gpubench\b", project.read_text("utf-8")):
        steps += [f"uv add --dev {shlex.quote(own_source(extras))}"]
    if top := _repository(Path.cwd().resolve()):
        own = [Path(name).absolute() for name in ("pyproject.toml", "uv.lock")]
        own = [p for p in own if (p.exists() or steps) and str(p) not in _ignored(top, own)]
        others = ("ls-files", "--others", "--exclude-standard", "--")
        new = (p for p in _named(suite) if _git(top, *others, f":(literal){p.resolve()}"))
        named = [*map(str, made), *(os.path.relpath(p) for p in new), *(p.name for p in own)]
        steps += [shlex.join(["git", "add", *named]), "git commit -m 'Measure speed'"]
        again = f"{gpubench} ab {shlex.quote(str(suite))} --baseline-ref HEAD --budget {BUDGET}"
        steps += [f"{again}  # after a change: is it slower?"]
    else:
        steps += [f"{gpubench} run {shlex.quote(str(suite))}"]
    yield from (f"{'next' * (not n):<6}{step}" for n, step in enumerate(steps))
