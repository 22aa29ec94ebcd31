"""Suite files: TOML -> `Draft` -> `Suite` -> cells. Every check of user input happens here.

All mistakes of a file are reported together, each with its dotted key, the value and what is
expected. The command line's overrides pass the same checks and are named by their option. A file is
read once, and what it says is checked once, whatever takes the place of parts of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from gpubench.errors import SuiteError
from gpubench.suite import toml_file
from gpubench.suite.grid import MAX_CELLS, anywhere, combinations, matches
from gpubench.suite.schema import (
    MOST,
    RENAMED,
    Mistake,
    Schema,
    mistakes,
    nearest,
    schema,
    show,
    typed,
)
from gpubench.suite.toml_file import Data
from gpubench.suite.types import (
    Axes,
    Catalog,
    OptionValue,
    Policy,
    Preprocess,
    Suite,
    Workload,
    default_weights,
    model_path,
    source_of,
    weights_file,
    with_path,
)

WHAT = "suite"
"""What its file is called in messages."""
MAX_RULES = 1_000
MAX_MATCHES = 1_000_000
"""Cells times exclusion rules."""
SECTIONS = ("workload", "axes", "policy")
"""Tables whose keys may be overridden."""
WEIGHTS = ("probe", "random", "file")
IMAGES = ("digits", "photos", "synthetic")


def shipped() -> list[Path]:
    """The suites that come with gpubench, sorted by name."""
    package = Path(__file__).parents[1]
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
    if _is(path, Path.exists):
        what = "a directory" if path.is_dir() else "not a regular file"
        raise SuiteError(f"suite {show(name_or_path)} is {what}; give a .toml file")
    hint = nearest(path.stem, suites)
    raise SuiteError(f"no suite and no file called {show(name_or_path)}; {hint}")


class Draft(Struct, frozen=True):
    """What a suite's file says: each key by itself is right, all together are not checked yet."""

    path: Path
    data: Data
    rules: Schema

    def suite(
        self, overrides: Mapping[str, Any] | None = None, own: Callable[[str], str] = str
    ) -> Suite:
        """The suite, with ``overrides`` in place of what the file says.

        They come from the command line: keys of `Workload`, `Axes` and `Policy`; values, or lists
        of them, may be strings ("8"). None means not given. A single ``repeats`` also sets
        ``max_repeats``. Paths are relative to the suite file, in overrides to the working
        directory; ``own`` says of each absolute one what takes its place. Raises SuiteError with
        all mistakes.
        """
        given = {key: value for key, value in (overrides or {}).items() if value is not None}
        values, places, found = self._typed(given)
        if not found:
            suite = _convert(self.path, _merge(self, values, own), self.rules)
            plain = suite
            if values["axes"]:
                plain = msgspec.structs.replace(suite, axes=_axes(self.data["axes"], self.rules))
            found = list(itertools.islice(_cross_checks(suite, plain, self.data), MOST + 1))
        if found:
            raise _error(self.path, found, places)
        return suite

    def _typed(
        self, given: Mapping[str, Any]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str], list[Mistake]]:
        """Overrides by section, the option to blame for each of them, and what is wrong already."""
        known = {s: self.rules["properties"][s]["properties"] for s in SECTIONS}
        values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        places: dict[str, str] = {}
        found: list[Mistake] = []
        for key, value in given.items():
            option = option_of(key)
            section = next((s for s in SECTIONS if key in known[s]), None)
            if section is None:
                keys = [k for s in SECTIONS for k in known[s]]
                raise SuiteError(f"{option}: there is no such key in a suite; {nearest(key, keys)}")
            rule = known[section][key]
            values[section][key] = typed(value, rule)
            places[f"{section}.{key}"] = option
            if isinstance(value, dict):
                places |= {f"{section}.{key}.{name}": f"{option} {name}" for name in value}
            found += mistakes(values[section][key], rule, f"{section}.{key}")
        return values, places, found

    @property
    def backends(self) -> list[str]:
        """Those that it names."""
        return listed(self.data["axes"]["backend"])

    @property
    def options(self) -> dict[str, dict[str, list[Any]]]:
        """By backend and name, the values that it gives options."""
        tables = self.data["axes"].get("options", {})
        return {b: {k: listed(v) for k, v in table.items()} for b, table in tables.items()}

    @property
    def known_options(self) -> dict[str, list[str]]:
        """By backend that is installed, its options' names."""
        tables = self.rules["properties"]["axes"]["properties"]["options"]["properties"]
        return {backend: list(table["properties"]) for backend, table in tables.items()}


def read(name_or_path: str, catalog: Catalog) -> Draft:
    """Read a suite. Raises SuiteError with all mistakes that show in single keys."""
    path = find(name_or_path)
    return draft(path, toml_file.read(path, WHAT), catalog)


def draft(path: Path, data: Data, catalog: Catalog) -> Draft:
    """Of what the file ``path`` says, or would say. Raises SuiteError as `read` does."""
    rules, data = schema(catalog), _renamed(data)
    if found := list(itertools.islice(mistakes(data, rules), MOST + 1)):
        raise _error(path, found, {})
    return Draft(path, data, rules)


def option_of(key: str) -> str:
    """What overrides a ``key`` of a suite on the command line, where --output is a directory."""
    return "--" + ("output-name" if key == "output" else key.replace("_", "-"))


def by_table(said: Data, catalog: Catalog) -> Data:
    """``said`` with keys of `SECTIONS` that stand alone (``batch_size``) in their tables."""
    rules = schema(catalog)["properties"]
    data: Data = {key: value for key, value in said.items() if key in rules}
    for key in said.keys() - data.keys():
        section = next((s for s in SECTIONS if key in rules[s]["properties"]), None)
        if section and isinstance(data.get(section, {}), dict):
            data[section] = data.get(section, {}) | {key: said[key]}
        else:
            data[key] = said[key]  # which the check knows no better
    return data


def _error(path: Path, found: Sequence[Mistake], places: Mapping[str, str]) -> SuiteError:
    """One message for all mistakes; ``places``: by dotted key, the option that overrides it."""
    lines = []
    for mistake in found[:MOST]:
        key = next((k for k in places if re.match(re.escape(k) + r"(\[|$)", mistake.at)), None)
        lines.append(str(mistake._replace(at=places[key]) if key else mistake))
    if len(lines) == 1:
        return SuiteError(f"suite {path}: {lines[0]}")
    many = f"{len(lines)} mistakes" if len(found) <= MOST else f"many mistakes, of which {MOST}"
    return SuiteError("\n  ".join([f"suite {path} has {many}:", *lines]))


def _renamed(data: Data) -> Data:
    """With keys of the policy that have former names under those of today."""
    policy = data.get("policy")
    if not isinstance(policy, dict):
        return data
    today = {old: new for old, new in RENAMED.items() if new not in policy}
    return data | {"policy": {today.get(key, key): value for key, value in policy.items()}}


def load(name_or_path: str, catalog: Catalog, overrides: Mapping[str, Any] | None = None) -> Suite:
    """`read`, and `Draft.suite`."""
    return read(name_or_path, catalog).suite(overrides)


# ------------------------------------------------------------------------------ reading


def _merge(
    draft: Draft, values: Mapping[str, dict[str, Any]], instead: Callable[[str], str]
) -> Data:
    """The file's data with the overrides, ``values`` by section, in it."""
    own: dict[str, dict[str, Any]] = {s: draft.data.get(s, {}) for s in SECTIONS}
    work, policy, chosen = dict(own["workload"]), values["policy"], values["workload"]
    said = _preprocess(work.pop("preprocess", {}), chosen.get("preprocess", {}))
    if "arguments" in chosen:
        said["arguments"] = work.pop("arguments", {}) | chosen["arguments"]
    model = chosen.get("model")
    if model and default_weights(model) != default_weights(work.get("model", "")):
        work.pop("weights", None)  # their default follows the kind of model
    if model and (model_path(model) or model != work.get("model")):
        work.pop("arguments", None)
    work = {key: value for key, value in work.items() if key not in chosen}
    if "repeats" in policy:
        policy = {"max_repeats": policy["repeats"]} | policy
    merged = draft.data | {
        "workload": _placed(work, draft.path.parent, instead)
        | _placed(chosen, Path.cwd(), instead)
        | said,
        "axes": own["axes"] | values["axes"],
        "policy": own["policy"] | policy,
    }
    baseline = draft.data.get("baseline", draft.backends[0])
    backends = listed(merged["axes"]["backend"])
    if baseline not in backends and "backend" in values["axes"]:
        baseline = backends[0]
    return merged | {"baseline": baseline}


def _preprocess(own: Data, chosen: Data) -> Data:
    """{'preprocess': ...}, key by key; {} where nothing is said.

    Another way to get to the size replaces the file's, as does another size.
    """
    pairs = (("resize", "crop"), ("crop", "resize"), ("size", "resize"))
    kept = own.keys() - {other for one, other in pairs if one in chosen}
    said = {k: v for k, v in own.items() if k in kept} | chosen
    said = {k: listed(v) if k in ("size", "mean", "std") else v for k, v in said.items()}
    return {"preprocess": said} if said else {}


def _placed(work: Data, base: Path, instead: Callable[[str], str]) -> Data:
    """With absolute paths: below ``base``, or what is taken ``instead``."""
    work = dict(work)
    model = work.get("model", "")
    if path := model_path(model):
        place = instead(_located(base, path))  # what is called 'hf/...' may also lie elsewhere
        if source_of(model) != "hf" or _is(Path(place), Path.exists):
            work["model"] = with_path(model, place)
    if work.get("weights", "probe") not in WEIGHTS:
        path, key = weights_file(_located(base, work["weights"]))
        place = instead(path)
        found = _is(Path(place), Path.exists)
        work["weights"] = f"{place}#{key}" if found and key else place if found else work["weights"]
    if work.get("images", "digits") not in IMAGES:
        place = instead(_located(base, work["images"]))
        work["images"] = place if _is(Path(place), Path.exists) else work["images"]
    for key in ("labels", "calibration"):
        if work.get(key):
            work[key] = instead(_located(base, work[key]))
    return work


def _convert(path: Path, data: Data, rules: Schema) -> Suite:
    """Data that satisfies the schema -> Suite, with every default filled in."""
    work, policy = data["workload"], data["policy"]
    work = {"weights": default_weights(work.get("model", ""))} | work
    work["arguments"] = tuple(sorted(work.get("arguments", {}).items()))
    policy = {"max_repeats": policy.get("repeats", Policy().repeats)} | policy
    return Suite(
        name=path.stem,
        description=data.get("description", ""),
        workload=msgspec.convert(work, Workload),
        axes=_axes(data["axes"], rules),
        policy=msgspec.convert(policy, Policy),
        exclude=exclusions(data),
        baseline=data["baseline"],
        gate={name: float(margin) for name, margin in data.get("gate", {}).items()},
    )


def _axes(data: Data, rules: Schema) -> Axes:
    axes = {k: v if k in ("device", "cores") else listed(v) for k, v in data.items()}
    known = rules["properties"]["axes"]["properties"]["options"]["properties"]
    axes["options"] = {
        backend: {
            name: [_number(v, known[backend]["properties"][name]) for v in listed(values)]
            for name, values in options.items()
        }
        for backend, options in data.get("options", {}).items()
        if backend in axes["backend"]
    }
    return msgspec.convert(axes, Axes)


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


def exclusions(data: Data) -> tuple[dict[str, OptionValue], ...]:
    """The rules of all tables under ``exclude``; of more than MAX_RULES the first."""
    rules = (rule for table in data.get("exclude", []) for rule in _rules_of(table))
    return tuple(itertools.islice(rules, MAX_RULES + 1))


def _rules_of(table: Data) -> Iterator[dict[str, OptionValue]]:
    """One rule for every combination of its lists' values."""
    for values in itertools.product(*(listed(v) for v in table.values())):
        yield dict(zip(table, values, strict=True))


def too_many(rules: Sequence[Any], cells: int) -> Mistake | None:
    """Where matching all ``rules`` with so many cells would take too long."""
    most = min(MAX_RULES, MAX_MATCHES // max(1, cells))
    text = f"more than {most:,} combinations; shorten a list"
    return Mistake("exclude", UNSET, text) if len(rules) > most else None


def idle(
    tables: Sequence[Data], known: str, acts: Callable[[dict[str, OptionValue]], bool]
) -> Iterator[Mistake]:
    """Each rule of ``tables`` that does not act; ``known``: whose values it may name."""
    for i, table in enumerate(tables):
        for rule in _rules_of(table):
            if not acts(rule):
                text = f"matches no cell; every value must be one that {known}"
                yield Mistake(f"exclude[{i}]", rule, text)


# ------------------------------------------------------------------------------ validating


def _cross_checks(suite: Suite, own: Suite, data: Data) -> Iterator[Mistake]:
    """What the schema cannot say: paths, and keys that depend on one another.

    ``own``: with the axes of the file's ``data``. An override may leave options and rules of the
    file nothing to do; without it they must have something.
    """
    yield from _workload_checks(suite.workload)
    policy, axes = suite.policy, suite.axes
    if policy.max_repeats < policy.repeats:
        text = f"below policy.repeats, which is {policy.repeats}"
        yield Mistake("policy.max_repeats", policy.max_repeats, text)
    if policy.timeout_s <= (least := policy.soak_s + policy.warmup_s + policy.duration_s):
        soak = "soak_s + " * bool(policy.soak_s)
        text = f"no task can end in time: {soak}warmup_s + duration_s = {least:g}"
        yield Mistake("policy.timeout_s", policy.timeout_s, text)
    if suite.baseline not in axes.backend:
        text = f"not measured; {nearest(suite.baseline, axes.backend)}"
        yield Mistake("baseline", suite.baseline, text)
    for backend in data["axes"].get("options", {}):
        if backend not in own.axes.backend:
            text = f"axes.backend does not name it; {nearest(backend, own.axes.backend)}"
            yield Mistake(f"axes.options.{backend}", UNSET, text)
    found = list(_grid_checks(own, data.get("exclude", [])))
    yield from found
    if own is not suite and not found:
        yield from _grid_checks(suite, [])


def _grid_checks(suite: Suite, tables: list[Data]) -> Iterator[Mistake]:
    """``tables``: the exclusions that must match something."""
    cells = sum(1 for _ in itertools.islice(combinations(suite, "cpu", 1), MAX_CELLS + 1))
    if cells > MAX_CELLS:
        yield Mistake("axes", UNSET, f"more than {MAX_CELLS:,} combinations; shorten an axis")
        return
    if mistake := too_many(suite.exclude, cells):
        yield mistake
        return
    grid = list(anywhere(suite))
    yield from idle(tables, "the axes have", lambda rule: any(matches(rule, c) for c in grid))
    if all(any(matches(rule, cell) for rule in suite.exclude) for cell in grid):
        yield Mistake("exclude", UNSET, "the rules leave no cell")


def _lack(path: Path) -> str:
    """Why it is not a file."""
    if _is(path, Path.is_symlink) and not _is(path, Path.exists):
        return "a link to a file that is not there; copy or download it again"
    return "a folder, not a file" if _is(path, Path.is_dir) else "there is no such file"


def _workload_checks(work: Workload) -> Iterator[Mistake]:
    def wrong(key: str, *words: str) -> Mistake:
        return Mistake(f"workload.{key}", getattr(work, key), "; ".join(words))

    for key, value in msgspec.structs.asdict(work).items():
        named = value if isinstance(value, str) else ""
        if any("\ud800" <= c <= "\udfff" for c in named):  # the name of a file; no record holds it
            yield wrong(key, "not UTF-8 text; rename that file or folder")
            return
    weights, kind, path = work.weights, source_of(work.model), model_path(work.model)
    own = default_weights(work.model)
    if path and kind != "hf" and not _is(Path(path), Path.is_file):
        yield wrong("model", _lack(Path(path)))
    if own == "file":
        if weights != "file":
            yield wrong(
                "weights",
                f"an .{kind} file brings its weights",
                'expected "file", or leave the key out',
            )
    elif weights == "file":
        yield wrong(
            "weights",
            "only for an .onnx or .pt2 model",
            nearest("", ("probe", "random", "DEFAULT")),
        )
    elif weights not in WEIGHTS and not _found(weights_file(weights)[0], Path.is_file):
        known = [*WEIGHTS[:2], "DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2"]
        shouted = re.fullmatch(r"[A-Z][A-Z0-9_]+", weights)
        if not shouted or weights.lower() in WEIGHTS:
            what = "no such file, keyword or published weights' name"
            if _found(weights, Path.is_dir):
                what = "a folder; give the file in it that holds the weights"
            yield wrong("weights", what, nearest(weights, known))
    if work.output and own == "probe":
        yield wrong("output", "only for a file, 'hf/...', or own code, that has several")
    if work.arguments and own == "file":
        text = "a file is not built, and takes none"
        yield Mistake("workload.arguments", dict(work.arguments), text)
    if work.images not in IMAGES and not _found(work.images, Path.exists):
        yield wrong("images", "no such folder, .tar shard or keyword", nearest(work.images, IMAGES))
    if work.labels and not _found(work.labels, Path.is_file):
        yield wrong("labels", _lack(Path(work.labels)))
    if work.preprocess:
        yield from _preprocess_checks(work.preprocess)
    if work.calibration and not _found(work.calibration, Path.exists):
        text = "there is no such folder; leave it out to calibrate on the images' training part"
        yield wrong("calibration", text)


def _preprocess_checks(said: Preprocess) -> Iterator[Mistake]:
    """What contradicts itself, whatever the network is; the rest is `preprocess.override`'s."""

    def wrong(key: str, text: str) -> Mistake:
        return Mistake(f"workload.preprocess.{key}", said.plain(key), text)

    if said.crop is False and said.resize:
        yield wrong("resize", "crop = false goes straight to size; leave one of them out")
    if said.resize and said.size and said.resize < min(said.size):
        text = f"below size, {show(said.plain('size'))}: the crop would have black borders"
        yield wrong("resize", text)
    if said.range and said.range[0] >= said.range[1]:
        yield wrong("range", "expected the lower end first, such as [0, 255] or [-1, 1]")
    depth = {"grey": 1, "rgb": 3, "bgr": 3}.get(said.channels or "")
    for key, values in (("mean", said.mean), ("std", said.std)):
        if values and len(values) not in (1, depth or 3):
            many = f"{depth} of {said.channels}" if depth else "one, or one for each of 3 channels"
            yield wrong(key, f"{len(values)} values; expected {many}")


def _found(value: str, test: Callable[[Path], bool]) -> bool:
    return Path(value).is_absolute() and _is(Path(value), test)  # `_placed` made it absolute
