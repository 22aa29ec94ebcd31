"""`gpubench tune` as it is typed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gpubench import plugins
from gpubench.cli.main import cli
from gpubench.errors import InputError
from gpubench.records.reader import read
from gpubench.records.record import RECORDS
from gpubench.run.ab import driver
from gpubench.run.tune import driver as tune_driver
from gpubench.run.tune import setup, trials, verify
from gpubench.run.tune.driver import BEST, FINISHED

Tune = Callable[..., Result]


@pytest.fixture
def go(
    fakes: None, tmp_path: Path, tiny_onnx: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Tune:
    """go("--budget", "3s"): a search of two configurations; time goes on by itself."""
    monkeypatch.setattr(verify, "SAMPLE_S", 0.04)
    monkeypatch.setattr(setup, "SAMPLE_S", 0.04)
    monkeypatch.setattr(trials, "monotonic", partial(next, itertools.count(0.0, 0.04)))
    monkeypatch.setattr(driver, "monotonic", partial(next, itertools.count(0.0, 0.3)))
    plain = [
        tiny_onnx, "--images", "synthetic", "--device", "cpu", "--backend", "fake",
        "--precision", "fp32", "--batch-size", "4", "--replicas", "1",
        "--baseline", "backend=fake,latency_us=2000", "--cache-dir", cache_dir,
        "-o", tmp_path / "out",
    ]  # fmt: skip

    def run(*words: object) -> Result:
        return CliRunner().invoke(cli, ["tune", *map(str, (*plain, *words))])

    return run


@pytest.mark.slow
def test_a_search_leaves_what_it_found_and_says_it_again(
    go: Tune, tmp_path: Path, cache_dir: Path
) -> None:
    out = tmp_path / "out"
    done = go("--budget", "1.5s")
    assert done.exit_code == 3, done.output  # one pair, after which the time is over
    assert "its gain is not confirmed; a longer --budget" in done.output
    assert "throughput of" in done.output
    assert "2 configurations" in done.output
    assert "Recommended: fake fp32, batch 4" in done.output
    assert str(out / BEST) in done.output.replace("\n", "")
    assert (out / "report.html").stat().st_size > 10_000
    assert json.loads((out / FINISHED).read_text())["recommendation"]["cell"]["backend"] == "fake"

    before = (out / RECORDS).read_bytes()
    (out / BEST).unlink()
    other = go("--budget", "9s", "--resume")
    assert other.stdout == "", "the result was told first"
    assert isinstance(other.exception, InputError)
    assert "holds another search" in str(other.exception)
    again = go("--budget", "1.5s", "--resume", "--json")
    assert again.exit_code == 3, again.output
    assert again.stderr.startswith("warning: exit code 3: its gain")
    assert json.loads(again.stdout) == json.loads((out / FINISHED).read_text())
    assert (out / RECORDS).read_bytes() == before
    assert not (out / BEST).exists()  # only its result is shown


def test_nothing_keeps_the_limits(go: Tune, tmp_path: Path) -> None:
    done = go("--budget", "1s", "--max-latency", "p50=100us", "-q")
    assert done.exit_code == 1, done.output
    assert done.output.startswith("error: Nothing keeps the limits")
    if plugins.serves(version("click"), ">=8.2"):  # older ones hand out both streams as one
        assert done.stdout == ""
    assert not (tmp_path / "out" / BEST).exists()
    again = go("--budget", "1s", "--max-latency", "p50=100us", "--resume")
    assert again.exit_code == 1
    assert "Nothing keeps the limits (p50 latency <= 100 us)" in again.output
    assert "closest" in again.output


def test_an_interrupt_says_how_to_go_on(
    go: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_driver, "run", interrupted)
    done = go()
    assert done.exit_code == 130
    assert f"--resume -o {tmp_path / 'out'}" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--objective", "beauty"), "--objective 'beauty'"),
        (("--max-latency", "fast"), "--max-latency 'fast'"),
        (("--max-latency", "p99=20"), "p99=20ms"),
        (("--min-throughput", "-3"), "--min-throughput '-3'"),
        (("--max-memory", "2 cats"), "--max-memory '2 cats'"),
        (("--max-energy", "1W"), "--max-energy '1W'"),
        (("--min-agreement", "1.2"), "--min-agreement '1.2'"),
        (("--min-accuracy", "0"), "--min-accuracy '0'"),
        (("--max-accuracy-drop", "101"), "--max-accuracy-drop 101"),
        (("--accuracy-images", "-1"), "--accuracy-images -1"),
        (("--budget", "soon"), "--budget 'soon'"),
        (("--budget", "1e300"), "--budget '1e300': expected a time of at most a week"),
        (
            ("--accuracy-images", "100001"),
            "100001: expected a whole number up to",
        ),
        (("--baseline", "colour=red"), "--baseline colour=red"),
        (("--batch-size", "0"), "--batch-size"),
    ],
)
def test_bad_words(go: Tune, tmp_path: Path, words: tuple[str, str], said: str) -> None:
    done = go(*words)
    assert isinstance(done.exception, InputError)  # `main` prints it and exits with 2
    assert said in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_energy_that_cannot_be_counted(go: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def read(self) -> None:
            return None

    monkeypatch.setattr(setup, "Rapl", Nothing)
    for words in (("--objective", "energy"), ("--max-energy", "0.5J")):
        assert "energy cannot be measured here" in str(go(*words).exception)


def test_a_search_that_is_there_is_not_begun_again(go: Tune, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORDS).write_text("not a record file\n")
    with pytest.raises(InputError, match="holds a run already"):
        raise go().exception or AssertionError
    done = go("--resume")
    assert isinstance(done.exception, InputError)
    assert "not the header" in str(done.exception)


@pytest.mark.slow
def test_two_real_backends(tmp_path: Path) -> None:
    """Builds, accuracy and best.toml of real runtimes: about half a minute."""
    out = tmp_path / "out"
    words = ["digits", "--backend", "torch-eager,onnxruntime", "--precision", "fp32",
             "--batch-size", "1,8", "--max-accuracy-drop", "5", "--accuracy-images", "64",
             "--device", "cpu", "--budget", "15s", "-o", str(out)]  # fmt: skip
    done = CliRunner().invoke(cli, ["tune", *words])
    assert done.exit_code in (0, 3), done.output  # so short an A/B may not decide
    checked = [r.parity for r in read(out).records if r.repeat == 1 and r.status == "ok"]
    assert all(parity and parity.max_accuracy_drop == 5 for parity in checked)
    assert checked
    run = ["run", str(out / BEST), "-o", str(tmp_path / "run"), "--repeats", "1", "-q"]
    assert CliRunner().invoke(cli, run).exit_code == 0
    [cell] = read(tmp_path / "run").header.planned
    result = json.loads((out / FINISHED).read_text())
    assert cell.key == result["recommendation"]["key"]
