"""What pytest calls. Loaded in every pytest run where gpubench is installed: imports pytest only.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gpubench.pytest_plugin.items import (
    FIXTURE,
    CellItem,
    answers_are_right,
    wanted_of,
    will_be_skipped,
)

if TYPE_CHECKING:
    from gpubench.pytest_plugin.measurements import Bench
    from gpubench.pytest_plugin.result import Result
    from gpubench.pytest_plugin.suite_runs import Wanted

NO_BENCHMARK = (
    "gpubench measures through pytest-benchmark, which is not active here: "
    "pip install pytest-benchmark, or leave out '-p no:benchmark'"
)
_BENCH = pytest.StashKey["Bench"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpubench", "gpubench: image classification, measured")
    for name, kind, metavar, default, text in (
        ("repeats", _positive, "N", None,
         "Fresh-process repeats of every cell, instead of what suites say."),
        ("cache-dir", _path, "DIR", None,
         "Where weights, exports and engines are kept; default: the user's cache directory."),
        ("records", _path, "DIR", None,
         "Keep each suite's records in DIR/SUITE, for 'gpubench report' and 'compare'."),
        ("require", _words, "NAMES", (),
         "Backends, comma-separated, whose skip is a failure."),
    ):  # fmt: skip
        group.addoption(
            f"--gpubench-{name}", type=kind, metavar=metavar, default=default, help=text
        )
    words = "Patterns of suite files to collect from directories, such as suites/*.toml."
    parser.addini("gpubench_suites", words, type="args", default=[])


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()  # a test may change the working directory


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "gpubench(suite, **overrides): what the test's fixture `gpubench` measures. Overrides are "
        "keys of the suite's workload, axes and policy, such as backend='onnxruntime'",
    )


def bench_of(config: pytest.Config) -> Bench:
    """The one `Bench` of this pytest run, made when first needed."""
    if _BENCH not in config.stash:
        from gpubench.pytest_plugin.measurements import Bench

        config.stash[_BENCH] = Bench(config)
    return config.stash[_BENCH]


# ------------------------------------------------------------------------------ collecting


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    if file_path.suffix != ".toml":
        return None
    patterns = parent.config.getini("gpubench_suites")
    if parent.session.isinitpath(file_path) or any(file_path.match(p) for p in patterns):
        return SuiteFile.from_parent(parent, path=file_path)
    return None


class SuiteFile(pytest.File):
    """A suite: one test a cell."""

    def collect(self) -> Iterator[CellItem]:
        path = str(self.path)
        # pytest-repeat repeats tests that have code
        repeat = self.config.pluginmanager.has_plugin("repeat")
        count = self.config.getoption("count", 1) if repeat else 1
        for wanted in _want(self.config, lambda bench: bench.want(path, {}), self.CollectError):
            for step in range(count):
                name = wanted.name + (f"-{step + 1}-{count}" if count > 1 else "")
                yield CellItem.from_parent(
                    self, name=name, callobj=answers_are_right, wanted=wanted, step=step
                )


def _want(
    config: pytest.Config,
    ask: Callable[[Bench], list[Wanted]],
    refuse: Callable[[str], BaseException],
) -> list[Wanted]:
    if not config.pluginmanager.has_plugin("pytest-benchmark"):
        raise refuse(NO_BENCHMARK)
    from gpubench.errors import GpubenchError

    try:
        return ask(bench_of(config))
    except GpubenchError as error:
        raise refuse(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A marked test runs once for each cell of what its mark says."""
    definition = metafunc.definition

    def refuse(words: str) -> BaseException:
        return pytest.fail.Exception(f"{definition.nodeid}: {words}", pytrace=False)

    if FIXTURE not in metafunc.fixturenames:
        if any(mark.name == "gpubench" for mark in definition.own_markers):
            raise refuse(
                "marked 'gpubench', but without the argument `gpubench`: nothing is measured"
            )
        return
    said = list(definition.iter_markers("gpubench"))
    if not said:
        return  # perhaps somebody else's fixture; ours says what is missing
    directory = definition.path.parent
    wanted = _want(metafunc.config, lambda bench: bench.of_marks(said, directory), refuse)
    metafunc.parametrize(FIXTURE, wanted, ids=[one.name for one in wanted], indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    for item in items:
        if any(mark.name == "gpubench" for mark in item.own_markers) and wanted_of(item) is None:
            words = "marked 'gpubench', but a unittest.TestCase takes no arguments: nothing is "
            raise pytest.UsageError(f"{item.nodeid}: {words}measured")
    required = config.getoption("gpubench_require")
    if _BENCH in config.stash or (required and not session.testsfailed):
        bench_of(config).check_options()


# ------------------------------------------------------------------------------ running


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure before the test begins: outside of its time-out, with all that belong together."""
    wanted, option = wanted_of(item), item.config.getoption
    without_tests = option("setuponly", False) or option("setupplan", False)
    if wanted is not None and not without_tests and not will_be_skipped(item):
        bench_of(item.config).make_ready(item, wanted)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that is run once more, as by pytest-rerunfailures, is measured once more."""
    if (wanted := wanted_of(item)) is not None and _BENCH in item.config.stash:
        bench_of(item.config).begins(item, wanted)


@pytest.fixture(name=FIXTURE)
def gpubench_fixture(request: pytest.FixtureRequest, benchmark: Any) -> Result | None:  # noqa: ARG001
    """What gpubench measured of the marked test's cell: see gpubench.pytest_plugin.result."""
    if wanted_of(request.node) is None:
        words = "the fixture `gpubench` needs a mark, such as @pytest.mark.gpubench(suite='ci')"
        pytest.fail(f"{words}, and must be an argument of the test or its fixtures", pytrace=False)
    return bench_of(request.config).results.get(request.node.nodeid)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Assert that the cell did not fail, and hand its durations over, before the test's body."""
    if wanted_of(pyfuncitem) is not None:
        result: Any = pyfuncitem.funcargs[FIXTURE]
        result.hand_over(pyfuncitem.funcargs["benchmark"])
    return (yield)


# ------------------------------------------------------------------------------ telling


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config, compared_benchmark: dict[str, Any]
) -> None:
    if isinstance(compared_benchmark.get("gpubench"), dict):
        bench_of(config).compared.append(compared_benchmark)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    if _BENCH in config.stash:
        output_json |= config.stash[_BENCH].facts()


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Before pytest-benchmark's, which raises where something regressed."""
    if _BENCH in config.stash:
        config.stash[_BENCH].show(terminalreporter)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _BENCH in config.stash:
        config.stash[_BENCH].clean()
