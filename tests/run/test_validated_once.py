"""However a suite comes to be measured, its file is read once, and each suite is checked once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpubench.pytest_plugin.measurements import Bench
from gpubench.run import setup
from gpubench.run.ab import arms
from gpubench.run.ab import setup as ab_setup
from gpubench.run.tune import setup as tune_setup
from gpubench.suite import file, toml_file
from gpubench.suite.goal import Goal, Metric
from gpubench.suite.types import Rule

Suite = Callable[..., Path]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Files read, files checked by the schema, suites checked as a whole."""
    found: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            found[name] += name != "schema" or len(arguments) == 2  # of a key its place is given
            return function(*arguments)

        return counted

    monkeypatch.setattr(toml_file, "read", counting("read", toml_file.read))
    for name, function in (("schema", "mistakes"), ("whole", "_cross_checks")):
        monkeypatch.setattr(file, function, counting(name, getattr(file, function)))
    return found


CHOSEN = {"batch_size": ["4"], "device": "cpu", "repeats": "1", "images": "digits"}


def test_a_run(counts: Counter[str], write_suite: Suite, tmp_path: Path) -> None:
    setup.session(str(write_suite()), CHOSEN, tmp_path, tmp_path / "run", False, ())
    assert counts == {"read": 1, "schema": 1, "whole": 1}


def test_both_arms(counts: Counter[str], write_suite: Suite, tmp_path: Path) -> None:
    specs = (
        arms.parse("--baseline", []),
        arms.parse("--candidate", ["precision=bf16,latency_us=2000"]),
    )
    ab_setup.comparison(str(write_suite()), CHOSEN, specs, (None, None), Rule(), 9.0, tmp_path,
                     tmp_path / "ab", False, ())  # fmt: skip
    assert counts == {"read": 1, "schema": 1, "whole": 2}


def test_a_search(counts: Counter[str], fakes: None, tiny_onnx: Path, tmp_path: Path) -> None:
    words = {"model": str(tiny_onnx), "images": "digits", "device": "cpu", "backend": ["fake"]}
    tune_setup.job(words, Goal(Metric("throughput")), {}, budget_s=60.0, seed=1,
                  baseline=["backend=fake"], cache_dir=tmp_path, output=None,
                  resume=False)  # fmt: skip
    assert counts == {"read": 1, "schema": 1, "whole": 1}


def test_tests_of_a_suite(counts: Counter[str], write_suite: Suite, tmp_path: Path) -> None:
    options = {"gpubench_cache_dir": tmp_path, "gpubench_repeats": 1}
    bench = Bench(SimpleNamespace(getoption=lambda name, default=None: options.get(name, default)))  # type: ignore[arg-type]
    path = str(write_suite())
    for _ in range(2):  # as often as tests ask
        assert len(bench.want(path, {"batch_size": [4], "device": "cpu"})) == 1
    assert counts == {"read": 1, "schema": 1, "whole": 1}
