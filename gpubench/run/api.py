"""What `gpubench` can be asked from Python, and the commands of the same names call.

All take keyword arguments named as a suite's keys (`docs/glossary.md`), which replace what the
suite says, and raise `gpubench.errors` in the command line's words. Nothing of the caller's process
is changed, and whatever is measured is measured in fresh processes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
from msgspec.structs import replace

from gpubench import escape
from gpubench.cache import Cache
from gpubench.errors import GpubenchError, InputError, RecordError, check_place
from gpubench.records.reader import scan
from gpubench.records.record import RECORDS, Header
from gpubench.report import formatting, render, save, save_report
from gpubench.report.sections import recommendation
from gpubench.run import deploy as deploying
from gpubench.run import driver, setup
from gpubench.run import fleet as machines
from gpubench.run import inspect as inspecting
from gpubench.run import progress as shows
from gpubench.run import selftest as testing
from gpubench.run.ab import arms, interpreters
from gpubench.run.ab import driver as pairs
from gpubench.run.ab import setup as ab_setup
from gpubench.run.ab.pair_runner import ARMS
from gpubench.run.availability import catalog
from gpubench.run.bisect import driver as bisect_driver
from gpubench.run.bisect import setup as bisecting
from gpubench.run.bisect.result import Bisection
from gpubench.run.inspect import Inspected
from gpubench.run.record_builder import claimed, directory
from gpubench.run.results import Comparison, Fleet, Plan, Run, Search, as_path
from gpubench.run.tune import driver as searching
from gpubench.run.tune import setup as tune_setup
from gpubench.run.watcher import Silent, Watcher
from gpubench.suite import as_toml, file, gate, goal
from gpubench.suite.types import MOST_ALPHA, MOST_IMAGES, Rule, source_of
from gpubench.suite.types import Suite as Checked
from gpubench.workload.data import given, transforms
from gpubench.workload.models.sources import pickled

if TYPE_CHECKING:
    from gpubench.run.cluster.ray_cluster import Cluster
    from gpubench.run.serving.manifest import Manifest

Place = str | Path
Progress = bool | Watcher


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop: what was finished is kept, and no process is left."""

    def __init__(self, place: Path, header: Header | None = None) -> None:
        where = "" if header else f", output={str(place)!r}"
        super().__init__(
            f"interrupted; what was finished is kept in {place}. Go on with the same call and "
            f"resume=True{where}"
        )
        self.directory = place
        self.again = formatting.resume(header, place) if header else ""
        """The command line that goes on with it."""


class Suite:
    """A suite built in Python: what a suite's file may say, checked at once.

    ``name``: what its runs are called. Then the tables of a file, ``workload``, ``axes``,
    ``policy``, ``gate``, ``exclude`` (a list of tables); or their keys directly, such as ``model``,
    ``backend``, ``batch_size``, ``repeats``. Raises SuiteError with all mistakes.

    >>> import gpubench
    >>> mine = gpubench.Suite("mine", model="resnet18", backend=["torch-eager", "openvino"])
    >>> mine.save("mine.toml")
    """

    def __init__(self, name: str = "suite", **said: Any) -> None:
        place, known = Path(f"{name}.toml"), catalog()
        plain = {key: _plain(value) for key, value in said.items()}
        self.draft = file.draft(place, file.by_table(plain, known), known)
        """Checked, but for what keyword arguments of a call replace."""
        self.draft.suite()

    def save(self, path: Place) -> Path:
        """Write it as a file that `gpubench run` takes; InputError where that cannot be done."""
        return _saved(self.draft.suite(), Path(path))

    def __repr__(self) -> str:
        """As its file says it."""
        made = self.draft.suite()
        return as_toml.to_toml(made, made.name)


# ------------------------------------------------------------------------------ the functions


def run(
    suite_or_model: Any,
    *,
    output: Place | None = None,
    resume: bool = False,
    require: str | Sequence[str] = (),
    progress: Progress = True,
    cache_dir: Place | None = None,
    command: Sequence[str] | None = None,
    cluster: Cluster | None = None,
    **overrides: Any,
) -> Run:
    """Measure every cell of a suite, or of a model.

    ``suite_or_model``: a `Suite`, a dict of its tables, the name of a shipped one, a .toml file; or
    a model, as ``--model`` takes it ('resnet50', 'timm/...', an .onnx file), or a live one: an
    ``nn.Module``, or a callable without arguments that builds one. A live model is pickled by value
    into the run's directory, and measured in eval mode by fresh processes; it is not changed. A
    model alone is measured by the backends and the policy of suite 'quick'.

    ``overrides``: keys of the suite, as ``batch_size=[1, 8]``, ``backend="openvino"``,
    ``repeats=3``, ``cell=[KEY]``. ``model`` may be live too. ``images``: also a torch ``Dataset``
    of (picture, class), or an array (N, H, W, 3) uint8, with ``labels`` (N,). ``preprocess``: also
    torchvision's or timm's transforms. ``input_size``: in pixels, ``preprocess``'s size;
    ``output_name``: ``workload.output``.

    ``output``: the run's directory; by default one in ``reports/``. It holds a suite's file, too,
    which repeats this. ``resume``: go on with the run in it; without ``output``, with the last one
    in ``reports/`` of the same suite and model; where nothing is stored yet, it begins.
    ``require``: backends whose skip is a failure. ``progress``: False shows nothing. ``command``:
    what the records say was typed; by default what repeats it. ``cluster``: the machines to run on,
    see `gpubench run --ray`.

    Raises InputError (or what is derived from it) for what is wrong with all that, before anything
    is measured; `Interrupted`, a KeyboardInterrupt, when it is stopped.

    >>> import gpubench
    >>> run = gpubench.run("digits", backend="torch-eager", batch_size=[1, 8], repeats=3)
    >>> run.fastest
    """
    asked = partial(_words, _held(suite_or_model), overrides := _held(overrides))

    def suites(home: Path) -> list[Checked]:
        return [setup.load(*asked(home))]

    with _home([suite_or_model], overrides, output, resume and suites) as home:
        source, chosen = asked(home)
        job = setup.session(
            source, chosen, _path(cache_dir), home, resume, file.listed(_plain(require)), cluster
        )
        job = replace(job, out=home or claimed(job.out))
        suite = job.plan.suite
        said = {"require": job.required and [*job.required], "cell": tuple(chosen.get("cell", ()))}
        place = str(job.out / f"{suite.name}.toml")
        typed = command or ["gpubench", "run", place, *setup.options(said)]
        job = replace(job, header=_typed(job.header, typed))
        with _watched(progress, job.out, job.header, suite) as watcher:
            found = driver.run(job, watcher, cluster)
    return Run(job.out, found)


def plan(
    suite_or_model: Any, *, keys: bool = False, cache_dir: Place | None = None, **overrides: Any
) -> Plan:
    """What `run` would do: its cells, what is skipped and why, and for how long. Runs nothing.

    Arguments as of `run`; ``keys``: shows the cells' keys, too.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source, chosen = _words(suite_or_model, overrides, Path(scratch))
        return Plan(setup.session(source, chosen, _path(cache_dir)), keys)


def ab(
    suite_or_model: Any = None,
    *,
    baseline: Any = (),
    candidate: Any = (),
    baseline_python: Place | None = None,
    candidate_python: Place | None = None,
    baseline_ref: str | None = None,
    candidate_ref: str | None = None,
    suite_from: ab_setup.SuiteFrom = "head",
    delta: float | str | None = None,
    metric: str | Sequence[str] | Mapping[str, float] = (),
    alpha: float | str = 0.01,
    budget: float | str = goal.BUDGET,
    output: Place | None = None,
    resume: bool = False,
    require: str | Sequence[str] = (),
    progress: Progress = True,
    cache_dir: Place | None = None,
    command: Sequence[str] | None = None,
    **overrides: Any,
) -> Comparison:
    """Compare two arms, interleaved: pairs of fresh processes in random order, until no verdict
    can change or the ``budget`` (seconds, or '10m') ends.

    ``baseline`` and ``candidate``: how an arm differs from the suite, {'backend': 'openvino'} or
    'backend=openvino'; or a model, live or written, as `run` takes it. ``.._python``: an
    interpreter; ``.._ref``: a git commit, measured with that interpreter, or one made with uv.
    ``delta``: differences up to this much do not matter (0.02, '2%'); ``alpha``: the chance of any
    false alarm; ``metric``: what is judged beside speed. Without ``suite_or_model`` the candidate's
    model is measured as by `run`. The rest as of `run`.

    >>> import gpubench
    >>> arms = {"baseline": {"batch_size": 1}, "candidate": {"batch_size": 8}}
    >>> gpubench.ab("digits", backend="torch-eager", budget=60, **arms).verdicts
    """
    named = _held({"--baseline": baseline, "--candidate": candidate})
    suite_or_model, overrides = _held(suite_or_model), _held(overrides)
    margin = None if delta is None else goal.percentage("--delta", str(delta))
    chance = goal.percentage("--alpha", str(alpha), MOST_ALPHA)
    _check("--suite-from", suite_from, ab_setup.SuiteFrom)
    judged = gate.words(metric)
    gate.parse(judged)  # before anything is made
    limit = goal.seconds("--budget", str(budget))
    live = [arm.get("model") if isinstance(arm, Mapping) else arm for arm in named.values()]
    versions = ((baseline_python, baseline_ref), (candidate_python, candidate_ref))

    @cache
    def made() -> list[tuple[Path | None, interpreters.Made | None]]:
        root = Cache(_path(cache_dir)).root
        return [_version(arm, *version, root) for arm, version in zip(named, versions, strict=True)]

    def asked(home: Path | None) -> tuple[pairs.ABJob, list[arms.Spec]]:
        specs = [_spec(option, arm, home) for option, arm in named.items()]
        pythons, revisions = zip(*made(), strict=True)
        if not any((*pythons, *revisions)) and specs[0].values == specs[1].values == {}:
            raise InputError(
                "nothing differs between the arms: name it with --baseline KEY=VALUE and "
                "--candidate KEY=VALUE, with --baseline-python, or with --baseline-ref"
            )
        what = specs[1].values.get("model") if suite_or_model is None else suite_or_model
        source, chosen = _words(what, overrides, home)
        job = ab_setup.comparison(
            source, chosen, (specs[0], specs[1]), (pythons[0], pythons[1]),
            partial(gate.rule, words=judged, delta=margin, alpha=chance), limit, _path(cache_dir),
            home, resume, file.listed(_plain(require)), (revisions[0], revisions[1]), suite_from,
        )  # fmt: skip
        return job, specs

    def suites(home: Path) -> list[Checked]:
        return [side.plan.suite for side in asked(home)[0].sides]

    with _home([suite_or_model, *live], overrides, output, resume and suites) as home:
        job, specs = asked(home)
        job = replace(job, out=home or claimed(job.out))
        suite = replace(job.sides[1].plan.suite, name=job.sides[0].plan.suite.name)
        said = {
            "baseline": specs[0].words or None, "candidate": specs[1].words or None,
            "baseline_python": baseline_python, "candidate_python": candidate_python,
            "baseline_ref": baseline_ref, "candidate_ref": candidate_ref,
            "suite_from": suite_from, "delta": delta, "metric": tuple(judged), "alpha": alpha,
            "budget": budget, "require": job.required and [*job.required],
            "cell": tuple(file.listed(_plain(overrides.get("cell", ())))),
        }  # fmt: skip
        place = str(job.out / f"{suite.name}.toml")
        typed = command or ["gpubench", "ab", place, *setup.options(said)]
        sides = [replace(side, header=_typed(side.header, typed)) for side in job.sides]
        job = replace(job, sides=(sides[0], sides[1]))
        with _watched(progress, job.out, job.sides[1].header, suite) as watcher:
            files = pairs.run(job, watcher)
    return Comparison(job.out, files)


def tune(
    model: Any,
    *,
    objective: str = "throughput",
    max_latency: str | Sequence[str] | Mapping[str, str] = (),
    min_throughput: float | str | None = None,
    max_memory: str | None = None,
    max_energy: str | None = None,
    min_agreement: float | str | None = None,
    min_accuracy: float | str | None = None,
    max_accuracy_drop: float | None = None,
    accuracy_images: int | None = None,
    budget: float | str = goal.BUDGET,
    baseline: str | Sequence[str] | Mapping[str, Any] = (),
    boundary: str = "transfer",
    seed: int = 0,
    output: Place | None = None,
    resume: bool = False,
    progress: Progress = True,
    cache_dir: Place | None = None,
    command: Sequence[str] | None = None,
    **chosen: Any,
) -> Search:
    """Find the fastest configuration of ``model``, live or written, that keeps the limits.

    ``objective``: 'throughput', 'latency' (p50), 'p99' ..., 'energy' or 'memory'. ``max_latency``:
    of a batch, 'p99=20ms'; ``min_throughput``: images/s; ``max_memory``: '2GiB'; ``max_energy``:
    per image, '0.5J'; ``min_agreement`` and ``min_accuracy``: 0.98 or '98%'; ``max_accuracy_drop``:
    percentage points. ``budget``: seconds, or '10m'; 30 % of it proves the result in an A/B.
    ``baseline``: what is to be beaten, {'backend': 'torch-eager'}. ``chosen``: ``backend``,
    ``precision``, ``batch_size`` and so on narrow the search; ``option``: 'optimization_level=4',
    or several, widens it. The rest as of `run`.
    """
    if not isinstance(model, str | Path) and not pickled.is_live(model):
        raise _no_words(model)
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise InputError(f"--seed {seed!r}: expected a whole number from 0")
    limits = [goal.max_latency("--max-latency", word) for word in gate.words(max_latency)]
    amounts = (min_throughput, max_memory, max_energy)
    for option, amount in zip(goal.LIMITS, amounts, strict=True):
        limits += [goal.limit(option, str(amount))] if amount is not None else []
    floors = {
        "min_top1_agreement": _share("--min-agreement", min_agreement),
        "min_accuracy": _share("--min-accuracy", min_accuracy),
        "max_accuracy_drop": _within(
            "--max-accuracy-drop", max_accuracy_drop, int | float, 100, "0 to 100 points, such as 1"
        ),
        "accuracy_images": _within(
            "--accuracy-images", accuracy_images, int, MOST_IMAGES,
            f"a whole number up to {MOST_IMAGES}, such as 256",
        ),
    }  # fmt: skip
    words, chosen = gate.words(baseline), _held(chosen)
    said = {
        "objective": objective, "max_latency": tuple(gate.words(max_latency)),
        "min_throughput": min_throughput, "max_memory": max_memory, "max_energy": max_energy,
        "min_agreement": min_agreement, "min_accuracy": min_accuracy,
        "max_accuracy_drop": max_accuracy_drop, "accuracy_images": accuracy_images,
        "budget": budget, "baseline": tuple(words), "seed": seed,
    }  # fmt: skip

    def job_in(home: Path | None) -> searching.TuneJob:
        asked = _replaced(chosen | {"model": model, "boundary": boundary}, home)
        asked |= {
            key: file.listed(asked[key]) for key in (*tune_setup.AXES, "option") if key in asked
        }
        job = tune_setup.job(
            asked, goal.Goal(goal.metric("--objective", objective), tuple(limits)), floors,
            budget_s=goal.seconds("--budget", str(budget)), seed=seed, baseline=words,
            cache_dir=_path(cache_dir), output=home, resume=resume,
        )  # fmt: skip
        given = said | asked | {"model": None, "option": tuple(asked.get("option", ()))}
        network = job.header.suite.workload.model
        typed = command or ["gpubench", "tune", network, *setup.options(given)]
        return replace(job, header=_typed(job.header, typed))

    def suites(home: Path) -> list[Checked]:
        return [job_in(home).header.suite]

    with _home([model], chosen, output, resume and suites) as home:
        job = job_in(home)
        job = replace(job, out=home or claimed(job.out))
        if searching.finished(job):
            outcome = searching.outcome(job)
            with shows.shown(progress) as watcher:
                watcher.said(f"{job.out}: this search is over; its result:")
            return Search(job.out, outcome.file, outcome.evidence)
        with _watched(progress, job.out, job.header) as watcher:
            outcome = searching.run(job, watcher)
    found, evidence = outcome.file, outcome.evidence
    save_report(job.out, render([found], "html", evidence))
    try:
        if outcome.best:
            save(job.out / searching.BEST, searching.best_toml(job, outcome.best))
        result = escape.encoded(recommendation.to_json(found, evidence), indent=1)
        save(job.out / searching.FINISHED, result + "\n")
    except InputError as error:
        raise GpubenchError(f"{error}; every record is kept: make room, then --resume") from error
    return Search(job.out, found, evidence)


def deploy(
    suite_or_model: Any,
    output: Place,
    *,
    progress: Progress = True,
    cache_dir: Place | None = None,
    **overrides: Any,
) -> Manifest:
    """Write one configuration as a folder that serves it, which `gpubench.load` loads.

    ``suite_or_model`` and ``overrides`` as of `run`, down to one cell: ``tune``'s ``suite``, or
    ``cell=[KEY]``. Its answers are checked first. ``output``: the new folder. What is given says
    what was made: ``cell``, ``preprocessing``, ``parity``, ``files``. Raises InputError;
    GpubenchError for what cannot be made here, or answers wrongly; then nothing is written.
    """
    out = as_path(output, "a directory")
    deploying.free(out)
    with tempfile.TemporaryDirectory() as scratch:
        source, chosen = _words(suite_or_model, overrides, Path(scratch))
        session = setup.session(source, chosen, _path(cache_dir), out)
        suite = source if isinstance(source, str) else str(source.path)
        with shows.shown(progress) as watcher:
            return deploying.deploy(session, suite, out, watcher)


def inspect(model: Any, *, cache_dir: Place | None = None, **overrides: Any) -> Inspected:
    """What a network is, and which backends take it: nothing is measured.

    ``model`` and ``overrides`` as of `run`, as far as they tell of the network: its input, classes,
    parameters, FLOPs by module. Raises InputError for what is no classifier of pictures.
    """
    if not isinstance(model, str | Path) and not pickled.is_live(model):
        raise _no_words(model)
    with tempfile.TemporaryDirectory() as scratch:
        chosen = _replaced(overrides | {"model": model}, Path(scratch))
        return inspecting.inspect(chosen, _path(cache_dir))


def bisect(
    suite: Place,
    *,
    good: str,
    bad: str,
    package: str | None = None,
    metric: str = "speed",
    delta: float | str | None = None,
    budget: float | str = goal.BISECTION,
    output: Place | None = None,
    resume: bool = False,
    progress: Progress = True,
    cache_dir: Place | None = None,
    **overrides: Any,
) -> Bisection:
    """Find the commit, or the release of ``package``, that made a suite slower or faster.

    ``good`` and ``bad``: commits or releases, before and after the change. ``metric``: what has
    changed, as of `ab`; ``delta``: a change up to this is none. The chance of a wrong answer is at
    most 1 %. Your checkout stays as it is. Every version builds the model anew, so nothing live is
    taken. ``resume``: go on with the one in ``output``. The rest as of `run`.
    """
    chosen = _in_words("bisection", suite, overrides)
    ((name, margin), *more) = gate.parse([metric]).items()
    if more or name == "preparation":
        raise InputError(f"--metric {metric!r}: one that can be measured again, such as memory")
    if delta is not None:
        margin = goal.percentage("--delta", str(delta))
    elif margin is None:
        margin = gate.METRICS[name].margin
    job = bisecting.bisection(
        str(suite), chosen, (good, bad), package,
        Rule(delta=max(margin, sys.float_info.epsilon)), goal.seconds("--budget", str(budget)),
        Cache(_path(cache_dir)).root, _path(output), resume, name,
    )  # fmt: skip
    with _watched(progress, job.out) as watcher:
        return Bisection(job, bisect_driver.run(job, watcher))


def fleet(
    suite_or_model: Any,
    cluster: Cluster,
    *,
    per: machines.Per = "gpu",
    baseline: str = "",
    price: str | Mapping[str, float] | None = None,
    output: Place | None = None,
    resume: bool = False,
    progress: bool | Callable[[str], Watcher] = True,
    cache_dir: Place | None = None,
    **overrides: Any,
) -> Fleet:
    """Run a suite on each kind of machine of a `Cluster`, all at the same time.

    ``per``: one device of each kind, or ('node') all that a machine has. ``baseline``: a part of
    the name of the device that others are compared with; ``price``: of an hour, {'L4': 0.71}.
    ``max_latency``: the best configuration keeps it, 'p99=20ms'. The rest as of `run`.

    >>> import gpubench
    >>> with gpubench.Cluster("head:6379") as cluster:  # doctest: +SKIP
    ...     gpubench.fleet("throughput", cluster, price={"L4": 0.71, "H100": 2.99})
    """
    if resume and output is None:
        raise InputError("--resume: say which runs to go on with: -o DIR")
    _check("--per", per, machines.Per)
    costs = machines.prices(price)
    with _home([suite_or_model], overrides, output, False) as home:
        source, chosen = _words(suite_or_model, overrides, home)
        name = Path(source).stem if isinstance(source, str) else source.path.stem
        out = home or claimed(directory(f"fleet-{name}"))

        def shown(name: str) -> Watcher:
            if callable(progress):
                return progress(name)
            return shows.Lines(shows.Named(name)) if progress else Silent()

        try:
            found = machines.run(
                cluster, source, chosen, out, shown, per=per, baseline=baseline, given=costs,
                resume=resume, cache_dir=_path(cache_dir),
            )  # fmt: skip
        except KeyboardInterrupt as error:
            raise Interrupted(out) from error
    return Fleet(out, found)


def selftest(
    suite: Place = "selftest",
    *,
    minutes: float = 5.0,
    delta: float | str = "2%",
    progress: bool | Callable[[str], object] = True,
    cache_dir: Place | None = None,
    **overrides: Any,
) -> testing.Result:
    """What numbers of this machine are worth: clock, harness, noise, false alarms.

    Compares ``suite`` with itself for half of ``minutes``: every alarm is a false one. Then runs
    it, for the A/A history from which `compare` takes its alarm limits.
    """
    chosen = _in_words("self-test", suite, overrides)
    number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    if not (number and 0 < minutes < 24 * 60):
        raise InputError(f"--minutes {minutes!r}: expected more than 0 and less than a day")
    rule = Rule(delta=goal.percentage("--delta", str(delta)))
    say = progress if callable(progress) else escape.tell if progress else Silent().said
    return testing.run(str(suite), minutes, chosen, rule, _path(cache_dir), say)


# ------------------------------------------------------------------------------ what is asked


def _live(what: Sequence[Any], said: Mapping[str, Any]) -> list[Any]:
    """What must be stored to be measured: modules, their builders, pictures."""
    found = [value for value in (*what, said.get("model")) if pickled.is_live(value)]
    return found + [images for images in [said.get("images")] if given.is_held(images)]


@contextmanager
def _home(
    what: Sequence[Any],
    said: Mapping[str, Any],
    output: Place | None,
    resume: Literal[False] | Callable[[Path], Sequence[Checked]],
) -> Iterator[Path | None]:
    """Where the records go, as far as that is said; made for what is live, which is removed again
    where nothing came of it. ``resume``: what the arms' suites are, were it stored there."""
    if resume and output is None:
        output = _last(resume)
    live = _live(what, said)
    if not live:
        yield _path(output)
        return
    place = _path(output) or claimed(directory(pickled.name_of(live[0])))
    new = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        before = {*place.iterdir()}
    except OSError as error:
        raise InputError(f"{place}: no directory for what is live: {error.strerror}") from error
    try:
        yield place
    except BaseException:
        if not (place / RECORDS).exists() and not any(place.glob(f"*/{RECORDS}")):
            for path in {*place.iterdir()} - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if new or output is None:
                place.rmdir()
        raise


def _last(suites: Callable[[Path], Sequence[Checked]]) -> Path | None:
    """The last directory of runs that holds one of the same; None: there is none."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = _identity(suites(Path(scratch)), Path(scratch))
    runs = directory("").parent
    begun = [*runs.glob(f"*/{RECORDS}"), *runs.glob(f"*/{ARMS[0]}/{RECORDS}")]
    for path in sorted(begun, key=lambda path: path.stat().st_mtime, reverse=True):
        place = runs / path.relative_to(runs).parts[0]
        arms_ = [path] if path.parent == place else [place / arm for arm in ARMS]
        with suppress(RecordError):
            if wanted == _identity([scan(each, [])[0].suite for each in arms_], place):
                return place
    return None


def _identity(suites: Sequence[Checked], place: Path) -> str:
    """What is measured, wherever what is live was stored."""
    return msgspec.json.encode(suites).decode().replace(str(place.absolute()), "")


def _words(
    what: Any, said: Mapping[str, Any], home: Path | None
) -> tuple[setup.Source, dict[str, Any]]:
    """The suite, and what replaces its words. ``home``: where what is live is stored."""
    check_place()
    chosen = _replaced(said, home)
    if isinstance(what, Suite):
        return what.draft, chosen
    if isinstance(what, Mapping):
        return Suite(**{str(key): value for key, value in what.items()}).draft, chosen
    if pickled.is_live(what):
        assert home  # noqa: S101
        return _of_model(str(pickled.dump(what, home)), pickled.name_of(what)), chosen
    if not isinstance(what, str | Path):
        raise _no_words(what, "a suite (a name, a .toml file, a dict, a gpubench.Suite), or ")
    words = str(what)
    shipped = words in {path.stem for path in file.shipped()}
    if shipped or not _is_model(words):
        return words, chosen
    return _of_model(words, Path(words).stem), chosen


def _in_words(what: str, suite: object, said: Mapping[str, Any]) -> dict[str, Any]:
    """What replaces words of a suite, where nothing may be live."""
    if not isinstance(suite, str | Path) or _live([suite], said):
        raise InputError(
            f"a {what} takes the name of a suite or its file, and model and images in words"
        )
    return _replaced(said, None)


def _no_words(what: object, suite: str = "") -> InputError:
    return InputError(
        f"of type {type(what).__name__}: expected {suite}a model (a name, a file, an nn.Module, a "
        "callable that builds one)"
    )


def _is_model(words: str) -> bool:
    named = words in catalog().models
    return named or (bool(source_of(words)) and not words.endswith(".toml"))


def _of_model(model: str, name: str) -> file.Draft:
    """Suite `setup.PLAIN`, with another model and one replica."""
    known = catalog()
    like = file.read(setup.PLAIN, known).data
    axes = like["axes"] | {"replicas": 1}
    data = {"axes": axes, "policy": like["policy"], "workload": {"model": str(model)}}
    return file.draft(Path(f"{name}.toml"), data, known)


def _replaced(said: Mapping[str, Any], home: Path | None) -> dict[str, Any]:
    """Keyword arguments as words of a suite."""
    chosen = {key: value for key, value in said.items() if value is not None}
    if pickled.is_live(chosen.get("model")):
        assert home  # noqa: S101
        chosen["model"] = str(pickled.dump(chosen["model"], home))
    if given.is_held(images := chosen.get("images")):
        assert home  # noqa: S101
        count = 2 * int(chosen.get("accuracy_images", 0))
        place, rows = given.store(images, chosen.pop("labels", None), home, count)
        chosen["images"] = place
        chosen |= {"labels": rows} if rows else {}
        if "preprocess" not in chosen and (transform := given.transform_of(images)) is not None:
            chosen["preprocess"] = transform
    if "preprocess" in chosen:
        chosen["preprocess"] = transforms.read(chosen["preprocess"])
    if (size := chosen.pop("input_size", None)) is not None:
        chosen["preprocess"] = {"size": _plain(size)} | chosen.get("preprocess", {})
    if (name := chosen.pop("output_name", None)) is not None:
        chosen["output"] = name
    if cells := file.listed(_plain(chosen.pop("cell", ()))):
        chosen["cell"] = cells
    return {key: _plain(value) for key, value in chosen.items()}


def _held(value: Any) -> Any:
    """``value``, of which what gives its values but once is a list: it may be asked for twice."""
    if isinstance(value, Mapping):
        return {key: _held(each) for key, each in value.items()}
    return [*map(_held, value)] if isinstance(value, Iterator) else value


_TYPES = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


def _plain(value: Any) -> Any:
    """As a TOML file would have it. Raises InputError for what is live."""
    if pickled.is_live(value):
        raise InputError(
            f"{pickled.name_of(value)}: live, and a suite is words; give it to the call, as "
            "gpubench.run(suite, model=...)"
        )
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list | set | range | Iterator):
        return [_plain(each) for each in value]
    if type(value).__module__.partition(".")[0] in ("numpy", "torch"):
        return value.tolist() if hasattr(value, "tolist") else _TYPES.get(str(value), str(value))
    return str(value) if isinstance(value, Path) else value


def _spec(option: str, arm: Any, home: Path | None) -> arms.Spec:
    """One arm of an A/B, from whatever names it."""
    if pickled.is_live(arm) or isinstance(arm, Path) or (isinstance(arm, str) and "=" not in arm):
        arm = {"model": arm}
    if isinstance(arm, Mapping):
        if home and pickled.is_live(live := arm.get("model")):
            arm = {**arm, "model": pickled.dump(live, home)}
        return arms.spec(option, [(str(key), _text(value)) for key, value in arm.items()])
    listed = [arm] if isinstance(arm, str) else _plain(arm)
    if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
        raise InputError(
            f"{option} {arm!r}: expected such as {{'backend': 'openvino'}}, or a model"
        )
    return arms.parse(option, listed)


def _version(
    arm: str, python: Place | None, ref: str | None, cache_root: Path
) -> tuple[Path | None, interpreters.Made | None]:
    """Which interpreter measures an arm; one of a commit is made now."""
    found = None
    if python:
        found = interpreters.existing(f"{arm}-python", as_path(python, "an interpreter"))
    if ref is None:
        return found, None
    return None, interpreters.of_reference(f"{arm}-ref", ref, cache_root, found)


def _text(value: Any) -> str:
    """As the command line would have it."""
    return as_toml.value(_plain(value)) if not isinstance(value, str | Path) else str(value)


def _share(option: str, value: float | str | None) -> float | None:
    """'0.98', '98%' or 0.98 -> 0.98; 1 and 100% too."""
    part = None if value is None else goal.fraction(str(value))
    if part is not None and not 0 < part <= 1:
        raise InputError(f"{option} {value!r}: expected a share, such as 0.98 or 98%")
    return part


def _check(option: str, word: str, known: Any) -> None:
    """Raises InputError unless it is a ``word`` of the Literal ``known``."""
    if word not in get_args(known):
        raise InputError(f"{option} {word!r}: expected {' or '.join(get_args(known))}")


def _within(option: str, value: Any, kind: Any, most: int, expected: str) -> Any:
    number = isinstance(value, kind) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= most):
        raise InputError(f"{option} {value!r}: expected {expected}")
    return value


# ------------------------------------------------------------------------------ around it


def _path(place: Place | None) -> Path | None:
    return None if place is None else as_path(place, "a directory")


def _typed(header: Header, command: Sequence[str]) -> Header:
    environment = header.environment | {"command": [*command]}
    return replace(header, command=[*command], environment=environment)


@contextmanager
def _watched(
    progress: Progress, place: Path, header: Header | None = None, suite: Checked | None = None
) -> Iterator[Watcher]:
    """Who is told meanwhile. Of what ends or is interrupted the ``suite`` is kept in ``place``,
    unless a file of its name is there."""
    interrupt = None
    try:
        with shows.shown(progress) as watcher:
            yield watcher
    except KeyboardInterrupt as error:
        interrupt = error
    if suite and not (path := place / f"{suite.name}.toml").exists():
        _saved(suite, path)
    if interrupt:
        raise Interrupted(place, header) from interrupt


def _saved(suite: Checked, path: Path) -> Path:
    save(path, as_toml.to_toml(suite, "", path.absolute().parent))
    return path
