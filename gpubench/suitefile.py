"""Suite files: TOML -> `Suite` -> cells. Every check of user input happens here.

All mistakes of a file are reported together, each with its dotted key, the value and what is
expected. The command line's overrides pass the same checks and are named by their option.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from gpubench import tomlfile
from gpubench.errors import SuiteError
from gpubench.suite import (
    Axes,
    Boundary,
    Catalog,
    Cell,
    Loader,
    OptionValue,
    Policy,
    Suite,
    Workload,
)
from gpubench.suiteschema import (
    MOST,
    Mistake,
    Schema,
    mistakes,
    nearest,
    same,
    schema,
    show,
    typed,
)
from gpubench.tomlfile import Data, Places

__all__ = ["expand", "find", "load", "schema", "shipped"]

WHAT = "suite"
"""What its file is called in messages."""
MAX_CELLS = 10_000
MAX_RULES = 1_000
MAX_MATCHES = 1_000_000
"""Cells times exclusion rules."""
WEIGHTS = ("probe", "random", "file")
IMAGES = ("digits", "photos", "synthetic")


def shipped() -> list[Path]:
    """The suites that come with gpubench, sorted by name."""
    package = Path(__file__).parent
    inside = package / "suites"  # an installed wheel; in a checkout they lie beside the package
    return sorted((inside if inside.is_dir() else package.parent / "suites").glob("*.toml"))


def find(name_or_path: str) -> Path:
    """The file of a shipped suite by its name, or of any other by its path."""
    suites = {path.stem: path for path in shipped()}
    path = Path(name_or_path)
    if name_or_path in suites:
        return suites[name_or_path]
    if _is(path, Path.is_file):
        return path
    if _is(path, Path.is_dir):
        raise SuiteError(f"suite {show(name_or_path)} is a directory; give a .toml file")
    hint = nearest(path.stem, suites)
    raise SuiteError(f"no suite and no file called {show(name_or_path)}; {hint}")


def load(name_or_path: str, catalog: Catalog, overrides: Mapping[str, Any] | None = None) -> Suite:
    """Read and validate a suite.

    ``overrides`` come from the command line: keys of `Workload`, `Axes` and `Policy`; values, or
    lists of them, may be strings ("8"). None means not given. A single ``repeats`` also sets
    ``max_repeats``. Paths are relative to the suite file, in overrides to the working directory.
    Raises SuiteError with all mistakes.
    """
    path = find(name_or_path)
    rules = schema(catalog)
    data = tomlfile.read(path, WHAT)
    suite = _build(path, data, rules, path.parent, {})
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if not given:
        return suite
    merged, places = _merge(suite, data, given, rules)
    return _build(path, merged, rules, Path.cwd(), places)


def expand(suite: Suite, device: Literal["cpu", "cuda"], machine_cores: int) -> list[Cell]:
    """The cells of ``suite`` on ``device``, in the order of the file, less the exclusions.

    ``machine_cores`` is shared out over the most devices that a cell needs, unless ``axes.cores``
    says otherwise. Combinations that mean the same (a lone replica has its device to itself; only
    throughput is dispatched and has a loader) are one cell. Raises SuiteError when the exclusions
    leave none.
    """
    cells: dict[str, Cell] = {}
    for cell in _grid(suite, device, machine_cores):
        if not any(_matches(rule, cell) for rule in suite.exclude):
            cells.setdefault(cell.key, cell)
    if not cells:
        raise SuiteError(f"suite {suite.name}: the exclusions leave no cell on device {device}")
    return list(cells.values())


def _grid(suite: Suite, device: Literal["cpu", "cuda"], machine_cores: int) -> Iterator[Cell]:
    axes, work = suite.axes, suite.workload
    places = list(itertools.product(axes.replicas, axes.replicas_per_device))
    cores = axes.cores or max(1, machine_cores // max(-(-n // each) for n, each in places))
    paths = list(_paths(axes))
    points = (axes.precision, axes.batch_size, places, axes.scenario, paths, axes.dispatch)
    for backend in axes.backend:
        options = axes.options.get(backend, {})
        for point, values in itertools.product(
            itertools.product(*points), itertools.product(*options.values())
        ):
            precision, batch_size, (replicas, per_device), scenario, path, dispatch = point
            boundary, decoder, loader, loader_cores = path
            yield Cell(
                backend=backend,
                device=device,
                model=work.model,
                weights=work.weights,
                images=work.images,
                precision=precision,
                batch_size=batch_size,
                replicas=replicas,
                cores=cores if device == "cpu" else 0,
                scenario=scenario,
                boundary=boundary,
                options=dict(zip(options, values, strict=True)),
                replicas_per_device=min(per_device, replicas),
                dispatch=dispatch if scenario == "throughput" else "independent",
                decoder=decoder,
                loader=loader if scenario == "throughput" else "auto",
                loader_cores=loader_cores if device == "cpu" and scenario == "throughput" else 0,
                labels=work.labels,
                calibration=work.calibration,
            )


def _paths(axes: Axes) -> Iterator[tuple[Boundary, str, Loader, int]]:
    """Boundary, decoder, loader and its cores; only a pipeline has them."""
    for boundary in axes.boundary:
        if boundary == "pipeline":
            for way in itertools.product(axes.decoder, axes.loader, axes.loader_cores):
                yield boundary, *way
        else:
            yield boundary, "pil", "auto", 0


def _matches(rule: Mapping[str, OptionValue], cell: Cell) -> bool:
    return all(same(cell.options.get(k, getattr(cell, k, None)), v) for k, v in rule.items())


# ------------------------------------------------------------------------------ reading


def _merge(
    suite: Suite, data: Data, given: Mapping[str, Any], rules: Schema
) -> tuple[Data, dict[str, str]]:
    """The file's data with the overrides in it, and the option to blame for each of them."""
    merged = {key: dict(v) if isinstance(v, dict) else v for key, v in data.items()}
    merged["workload"] = msgspec.to_builtins(suite.workload)  # its paths are absolute by now
    merged["baseline"] = suite.baseline
    places = {}
    for key, value in given.items():
        option = "--" + key.replace("_", "-")
        sections = {s: rules["properties"][s]["properties"] for s in ("workload", "axes", "policy")}
        section = next((s for s, known in sections.items() if key in known), None)
        if section is None:
            known = [k for keys in sections.values() for k in keys]
            raise SuiteError(f"{option}: there is no such key in a suite; {nearest(key, known)}")
        merged.setdefault(section, {})[key] = typed(value, sections[section][key])
        places[f"{section}.{key}"] = option
    if "repeats" in given and "max_repeats" not in given:
        merged["policy"]["max_repeats"] = merged["policy"]["repeats"]
    if "model" in given and "weights" not in given:
        was_file, is_file = (
            str(m).endswith(".onnx") for m in (suite.workload.model, given["model"])
        )
        if was_file != is_file:
            del merged["workload"]["weights"]  # its default follows the kind of model
    if "backend" in given and merged["baseline"] not in listed(merged["axes"]["backend"]):
        del merged["baseline"]
    return merged, places


# ------------------------------------------------------------------------------ validating


def _build(path: Path, data: Data, rules: Schema, base: Path, places: Places) -> Suite:
    found = list(itertools.islice(mistakes(data, rules), MOST + 1))
    if not found:
        suite = _convert(path, data, rules, base)
        checks = _cross_checks(suite, data, overridden=bool(places))
        found = list(itertools.islice(checks, MOST + 1))
    if found:
        raise tomlfile.error(WHAT, path, found, places)
    return suite


def _convert(path: Path, data: Data, rules: Schema, base: Path) -> Suite:
    """Data that satisfies the schema -> Suite, with every default filled in."""
    axes = {k: v if k in ("device", "cores") else listed(v) for k, v in data["axes"].items()}
    known = rules["properties"]["axes"]["properties"]["options"]["properties"]
    axes["options"] = {
        backend: {
            name: [_number(v, known[backend]["properties"][name]) for v in listed(values)]
            for name, values in options.items()
        }
        for backend, options in data["axes"].get("options", {}).items()
        if backend in axes["backend"]
    }
    policy = dict(data.get("policy", {}))
    policy.setdefault("max_repeats", policy.get("repeats", Policy().repeats))
    work = dict(data.get("workload", {}))
    if work.get("model", "").endswith(".onnx"):
        work["model"] = _located(base, work["model"])
        work.setdefault("weights", "file")
    for key, keywords in (("weights", WEIGHTS), ("images", IMAGES)):
        if key in work and work[key] not in keywords:
            place = _located(base, work[key])
            work[key] = place if _is(Path(place), Path.exists) else work[key]
    for key in ("labels", "calibration"):
        if work.get(key):
            work[key] = _located(base, work[key])
    exclude = (rule for table in data.get("exclude", []) for rule in rules_of(table))
    return Suite(
        name=path.stem,
        description=data.get("description", ""),
        workload=msgspec.convert(work, Workload),
        axes=msgspec.convert(axes, Axes),
        policy=msgspec.convert(policy, Policy),
        exclude=tuple(itertools.islice(exclude, MAX_RULES + 1)),
        baseline=data.get("baseline", axes["backend"][0]),
    )


def _located(base: Path, value: str) -> str:
    try:
        return str((base / Path(value).expanduser()).absolute())
    except RuntimeError:  # "~nobody": not a home directory, so an ordinary name
        return str((base / value).absolute())


def _is(path: Path, test: Callable[[Path], bool]) -> bool:
    """``test(path)``; False also where asking fails (no permission, a name too long)."""
    try:
        return test(path)
    except OSError:
        return False


def listed(value: Any) -> list[Any]:
    """A value that may be given alone."""
    return value if isinstance(value, list) else [value]


def _number(value: Any, rule: Schema) -> Any:
    return float(value) if rule["anyOf"][0]["type"] == "number" else value


def rules_of(table: Data) -> Iterator[dict[str, OptionValue]]:
    """One rule for every combination of its lists' values."""
    for values in itertools.product(*(listed(v) for v in table.values())):
        yield dict(zip(table, values, strict=True))


def _cross_checks(suite: Suite, data: Data, *, overridden: bool) -> Iterator[Mistake]:
    """What the schema cannot say: paths, and keys that depend on one another."""
    yield from _workload_checks(suite.workload)
    policy, axes = suite.policy, suite.axes
    if policy.max_repeats < policy.repeats:
        text = f"below policy.repeats, which is {policy.repeats}"
        yield Mistake("policy.max_repeats", policy.max_repeats, text)
    if policy.timeout_s <= policy.warmup_s + policy.sample_s:
        text = (
            f"no task can end in time: warmup_s + sample_s = {policy.warmup_s + policy.sample_s:g}"
        )
        yield Mistake("policy.timeout_s", policy.timeout_s, text)
    if suite.baseline not in axes.backend:
        text = f"not measured; {nearest(suite.baseline, axes.backend)}"
        yield Mistake("baseline", suite.baseline, text)
    for backend in [] if overridden else data["axes"].get("options", {}):
        if backend not in axes.backend:
            text = f"axes.backend does not name it; {nearest(backend, axes.backend)}"
            yield Mistake(f"axes.options.{backend}", None, text, shown=False)
    cells = sum(1 for _ in itertools.islice(_grid(suite, "cpu", 1), MAX_CELLS + 1))
    if cells > MAX_CELLS:
        text = f"more than {MAX_CELLS:,} combinations; shorten an axis"
        yield Mistake("axes", None, text, shown=False)
    elif len(suite.exclude) > (most := min(MAX_RULES, MAX_MATCHES // max(1, cells))):
        text = f"more than {most:,} combinations; shorten a list"
        yield Mistake("exclude", None, text, shown=False)
    else:
        yield from _exclusion_checks(suite, [] if overridden else data.get("exclude", []))


def _exclusion_checks(suite: Suite, tables: list[Data]) -> Iterator[Mistake]:
    """``tables``: those that must match something; an override may leave a rule nothing to do."""
    both: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    devices = [d for d in both if suite.axes.device in ("auto", d)]
    grid = [cell for device in devices for cell in _grid(suite, device, 1)]
    for i, table in enumerate(tables):
        for rule in rules_of(table):
            if not any(_matches(rule, cell) for cell in grid):
                text = "matches no cell; every value must be one that the axes have"
                yield Mistake(f"exclude[{i}]", rule, text)
    if all(any(_matches(rule, cell) for rule in suite.exclude) for cell in grid):
        yield Mistake("exclude", None, "the rules leave no cell", shown=False)


def _workload_checks(work: Workload) -> Iterator[Mistake]:
    for key, value in msgspec.structs.asdict(work).items():
        if any("\ud800" <= c <= "\udfff" for c in value):  # the name of a file; no record holds it
            yield Mistake(f"workload.{key}", value, "not UTF-8 text; rename that file or folder")
            return
    if work.model.endswith(".onnx"):
        if not _is(Path(work.model), Path.is_file):
            yield Mistake("workload.model", work.model, "there is no such file")
        if work.weights != "file":
            text = 'an .onnx file brings its weights; expected "file", or leave the key out'
            yield Mistake("workload.weights", work.weights, text)
    elif work.weights == "file":
        text = f"only for an .onnx model; {nearest('', ('probe', 'random', 'DEFAULT'))}"
        yield Mistake("workload.weights", work.weights, text)
    elif work.weights not in WEIGHTS and not _found(work.weights, Path.is_file):
        known = [*WEIGHTS[:2], "DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2"]
        shouted = re.fullmatch(r"[A-Z][A-Z0-9_]+", work.weights)
        if not shouted or work.weights.lower() in WEIGHTS:
            text = (
                f"no such file, keyword or torchvision weights name; {nearest(work.weights, known)}"
            )
            yield Mistake("workload.weights", work.weights, text)
    if work.images not in IMAGES and not _found(work.images, Path.exists):
        text = f"no such folder, .tar shard or keyword; {nearest(work.images, IMAGES)}"
        yield Mistake("workload.images", work.images, text)
    if work.labels and not _found(work.labels, Path.is_file):
        yield Mistake("workload.labels", work.labels, "there is no such file")
    if work.calibration and not _found(work.calibration, Path.exists):
        text = "there is no such folder; leave it out to calibrate on the images' training part"
        yield Mistake("workload.calibration", work.calibration, text)


def _found(value: str, test: Callable[[Path], bool]) -> bool:
    return Path(value).is_absolute() and _is(Path(value), test)  # `_convert` made it absolute
