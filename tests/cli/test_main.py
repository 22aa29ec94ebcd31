"""The command as people and CI use it: a subprocess, its output, its exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from gpubench import __version__
from gpubench.cli.main import cli
from gpubench.errors import InputError
from gpubench.machine.processes import session_members
from gpubench.records.reader import read
from gpubench.suite.types import MIN_BLOCKS
from tests.conftest import GPUBENCH, WITHOUT_PAGE

WriteSuite = Callable[..., Path]


def gpubench(
    *words: object, cwd: Path | None = None, page: bool = True
) -> subprocess.CompletedProcess[str]:
    command = [*(GPUBENCH if page else WITHOUT_PAGE), *(str(word) for word in words)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def measured(write_suite: WriteSuite, finished: Path, cache_dir: Path) -> Path:
    """A finished run, shared by the tests that only read it."""
    if not finished.exists():
        words = ("run", write_suite(), "-o", finished, "--cache-dir", cache_dir)
        done = gpubench(*words, page=False)
        assert done.returncode == 0, done.stderr
    return finished


def test_run_leaves_records_tables_and_a_report(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    done = gpubench("run", write_suite(), "--cache-dir", cache_dir, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [out] = (tmp_path / "reports").glob("*-*")
    assert re.fullmatch(r"tiny-\d{8}T\d{6}Z", out.name)
    assert len(read(out).records) == 4
    assert (out / "report.html").stat().st_size > 10_000
    assert "fake" in done.stdout
    assert f"report: reports/{out.name}/report.html" in done.stdout
    assert done.stderr == ""


def test_quiet_prints_nothing(write_suite: WriteSuite, tmp_path: Path, cache_dir: Path) -> None:
    words = ("run", write_suite(), "-q", "-o", tmp_path / "r", "--cache-dir", cache_dir)
    done = gpubench(*words, page=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failed_cell_is_exit_code_1(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(axes='[axes.options.fake]\nfail = ["", "wrong"]', batch_size="[1]")
    words = ("run", suite, "-o", tmp_path / "run", "--cache-dir", cache_dir)
    done = gpubench(*words, page=False)
    assert done.returncode == 1
    assert "parity" in done.stdout


def test_require_makes_a_skip_exit_code_1(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(backend='["fake", "fake-missing"]', batch_size="[1]")
    words = ("run", suite, "--cache-dir", cache_dir)
    assert gpubench(*words, "-o", tmp_path / "a", page=False).returncode == 0
    into = ("-o", tmp_path / "b")
    required = gpubench(*words, *into, "--require", "fake-missing", page=False)
    assert required.returncode == 1
    assert "pip install a-machine-that-has-it" in " ".join(required.stdout.split())
    again = gpubench(*words, *into, "--resume", "--require", "fake-missing", "-q", page=False)
    assert (again.returncode, again.stdout) == (1, "")
    [line] = again.stderr.splitlines()
    assert line.startswith("fake-missing: failed: required (1 cell): --require fake-missing: ")


def test_a_run_that_measures_nothing_is_exit_code_1_and_says_why_once(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite, out = write_suite(backend='["fake-missing"]'), tmp_path / "run"
    words = ("run", suite, "-o", out, "--cache-dir", cache_dir, "--resume")
    begun = gpubench(*words, page=False)
    assert begun.returncode == 1
    said = " ".join(begun.stdout.split())
    assert "--resume: nothing is stored there yet, so this is its beginning" in said
    assert begun.stderr == "error: nothing was measured: of 2 cells all were skipped\n"
    quiet = gpubench(*words, "-q", page=False)
    assert (quiet.returncode, quiet.stdout) == (1, "")
    why, last = quiet.stderr.splitlines()
    assert why.startswith("fake-missing: unavailable (2 cells): ")
    assert last == begun.stderr.strip()
    for refused in (("--batch-size", "7", *words), words[:-1]):  # another suite; no --resume
        done = gpubench("run", *(word for word in refused if word != "run"), page=False)
        assert (done.returncode, done.stdout) == (2, ""), "the plan was printed first"
        assert str(out) in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "quik"], "quick"),
        (["run", "quick", "--backend", "torch-egaer"], "torch-eager"),
        (["run", "quick", "--batch-size", "0"], "--batch-size"),
        (["run", "quick", "--batch-size", "a"], "'a'"),
        (["run", "quick", "--cell", "000"], "no such cell"),
        (["run", "--ray", "quick", "ci"], "--ray 'quick': expected HOST:PORT"),
        (["report", "nowhere"], "nowhere"),
        (["compare", "nowhere", "elsewhere"], "nowhere"),
        (["history", ".", "--delta", "200%"], "200%"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_exit_code_2_with_the_place_and_no_traceback(
    words: list[str], told: str, tmp_path: Path
) -> None:
    done = gpubench(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing may be left behind"


def test_a_second_run_into_the_same_directory_loses_nothing(
    measured: Path, write_suite: WriteSuite, cache_dir: Path
) -> None:
    before = (measured / "records.jsonl").read_bytes()
    done = gpubench("run", write_suite(), "-o", measured, "--cache-dir", cache_dir)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert (measured / "records.jsonl").read_bytes() == before


def test_ctrl_c_stops_within_two_seconds_and_leaves_nothing(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]", policy={"repeats": 50, "max_repeats": 50})
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*WITHOUT_PAGE, "run", str(suite), "-o", str(out), "--cache-dir", str(cache_dir)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "records.jsonl").exists() or len(read(out).records) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    agents = [pid for pid in _all_pids() if _parent(pid) == process.pid]
    assert agents
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    said, _ = process.communicate(timeout=30)
    assert time.monotonic() - begin < 2
    assert process.returncode == 130
    assert len(read(out).records) >= 2
    hint = said.partition("Go on with: ")[2].split()
    assert hint[:2] == ["gpubench", "run"]
    assert hint[hint.index("-o") + 1] == str(out)
    assert hint[2] == str(suite)
    assert "--resume" in hint
    assert [pid for agent in agents for pid in session_members(agent)] == []


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_the_driver_killed_leaves_no_process_and_resumes(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]", policy={"repeats": 8, "max_repeats": 8})
    out = tmp_path / "run"
    words = ["run", str(suite), "-o", str(out), "--cache-dir", str(cache_dir)]
    process = subprocess.Popen([*WITHOUT_PAGE, *words], stdout=subprocess.DEVNULL)
    while not (out / "records.jsonl").exists() or len(read(out).records) < 2:
        time.sleep(0.05)
    [agent] = [pid for pid in _all_pids() if _parent(pid) == process.pid]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while session_members(agent):
        assert time.monotonic() < deadline, "processes outlived the driver"
        time.sleep(0.05)
    assert gpubench(*words, "--resume", page=False).returncode == 0
    assert sorted(r.repeat for r in read(out).records) == list(range(8))
    lines = (out / "records.jsonl").read_text().splitlines()
    assert len(lines) == 9, "a repeat was measured twice"


def test_one_cell_alone(
    measured: Path, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    key = read(measured).records[0].cell.key
    words = ("run", write_suite(), "--cell", key, "--cache-dir", cache_dir)
    done = gpubench(*words, "-o", tmp_path / "one", page=False)
    assert done.returncode == 0, done.stderr
    assert {r.cell.key for r in read(tmp_path / "one").records} == {key}


def test_plan_runs_nothing(write_suite: WriteSuite, tmp_path: Path, cache_dir: Path) -> None:
    suite = write_suite(
        backend='["fake", "fake-missing"]', scenario='["throughput"]',
        policy={"duration_s": 0.2, "block_s": 0.1},
    )  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    done = gpubench("plan", suite, "--cache-dir", cache_dir)
    assert re.search(r"^as an A/B: about .*; --budget \d+m finds a slowdown of [\d.]+ %$",
                     done.stdout, re.M)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 cells x 2 repeats" in done.stdout
    assert "2 repeats: no usable intervals; --repeats 3" in done.stdout
    assert not re.search(r"\b[0-9a-f]{12}\b", done.stdout)
    keyed = gpubench("plan", suite, "--cache-dir", cache_dir, "--keys").stdout
    assert len(re.findall(r"^[0-9a-f]{12}  ", keyed, re.M)) == 2
    said = f"a repeat of throughput samples for {MIN_BLOCKS * 0.1:g} s, not 0.2 s"
    assert said in " ".join(done.stdout.split())
    assert "a-machine-that-has-it" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", ["text", "html", "md", "csv", "json"])
def test_report_formats(measured: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / f"x.{form}"
    assert gpubench("report", measured, "-f", form, "-o", out).returncode == 0
    body = out.read_text()
    assert "fake" in body
    if form == "json":
        json.loads(body)


def test_report_guesses_the_format_from_the_ending(measured: Path, tmp_path: Path) -> None:
    gpubench("report", measured, "-o", tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text().lstrip().lower().startswith("<!doctype html")


def test_one_page_is_html_and_nothing_else(measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert gpubench("report", measured, "--one-page", "-o", out).returncode == 0
    assert "<script" not in out.read_text()
    done = gpubench("report", measured, "--one-page", "-f", "md")
    assert done.returncode == 2
    assert "--one-page is a page of HTML, not of md" in done.stderr


def test_compare_a_run_with_itself(measured: Path) -> None:
    done = gpubench("compare", measured, measured, "--json")
    assert done.returncode in (0, 3)  # two repeats are few, so it may be inconclusive
    rows = json.loads(done.stdout)["comparisons"]
    assert {row["verdict"] for row in rows} <= {"EQUIVALENT", "INCONCLUSIVE"}
    assert [row["ratio"] for row in rows] == pytest.approx([1.0] * len(rows))
    assert "both are the same run" in done.stderr


def test_the_same_records_give_the_same_bytes_anywhere(measured: Path, tmp_path: Path) -> None:
    """Whatever the seed of hashes, the directory, the locale and the time zone."""
    commands = (
        ["compare", measured, measured, "--json", "--fail-on", "none"],
        ["report", measured, "-f", "html"],
        ["history", measured, "-f", "html"],
    )
    places = ({"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"},
              {"PYTHONHASHSEED": "77", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"})  # fmt: skip
    for words in commands:
        made = [
            subprocess.run([*GPUBENCH, *map(str, words)], capture_output=True, timeout=120,
                           check=True, cwd=cwd, env=os.environ | extra).stdout
            for cwd, extra in zip((tmp_path, measured), places, strict=True)
        ]  # fmt: skip
        assert len(made[0]) > 1000
        assert made[0] == made[1]


def test_compare_says_what_is_wrong_with_a_file(measured: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes((measured / "records.jsonl").read_bytes()[:-9])
    done = gpubench("compare", measured, cut, "--fail-on", "none")
    assert done.returncode == 0, done.stderr
    assert "cut.jsonl: line" in done.stderr
    assert "was cut off" in done.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--delta", ""), "--delta ''"),
        (("--alpha", "30%"), "between 0 and 0.2"),
        (("--history", "."), "no session in it"),
        (("--allow-different", "cpu,librarys"), "--allow-different 'librarys'"),
    ],
)
def test_compare_refuses_what_it_would_not_heed(
    measured: Path, tmp_path: Path, given: tuple[str, str], words: str
) -> None:
    option, value = given
    done = gpubench("compare", measured, measured, option, tmp_path if value == "." else value)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.slow
def test_ab_says_a_regression_with_its_exit_code(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]", policy={"duration_s": 0.04})
    slower = ("--baseline", "latency_us=300", "--candidate", "latency_us=900")
    out = tmp_path / "ab"
    done = gpubench("ab", suite, *slower, "-o", out, "--cache-dir", cache_dir)
    assert done.returncode == 1, done.stderr
    assert "REGRESSED: 1 of 1 cell is slower" in done.stdout
    assert (out / "report.html").exists()
    again = gpubench("compare", out, "--json", "--fail-on", "none", "--cache-dir", cache_dir)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert [row["verdict"] for row in found["comparisons"]] == ["REGRESSED"]
    assert found["comparisons"][0]["interleaved"] is True
    assert found["comparisons"][0]["ratio"] > 2
    short = ("--budget", "0.1s", "--cache-dir", cache_dir)
    free = ("--json", "--fail-on", "none", "-o", tmp_path / "free")
    passed = gpubench("ab", suite, *slower, *short, *free)
    assert passed.returncode == 0, passed.stderr
    assert json.loads(passed.stdout)["exit_code"] == 0
    ended = gpubench("ab", suite, *slower, *short, "-o", tmp_path / "short")
    assert ended.returncode == 3, ended.stderr
    told = r"about \d+ pairs, .* more would decide .*: gpubench ab .* -o .*short --budget 60s"
    assert re.search(told, ended.stdout)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing differs"),
        (["--candidate", "latency_us=1", "--delta", "200%"], "200%"),
        (["--candidate", "latency_us=1", "--fail-on", "slow"], "'slow'"),
        (["--candidate", "latency_us=1", "--budget", "soon"], "soon"),
    ],
)
def test_bad_input_of_ab_is_exit_code_2_and_leaves_nothing(
    words: list[str], told: str, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    out = tmp_path / "ab"
    done = gpubench("ab", write_suite(), *words, "-o", out, "--cache-dir", cache_dir)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("words", [["report", "RUN", "-f", "csv"], ["plan", "SUITE"], ["schema"]])
def test_a_reader_that_goes_away_is_no_error(
    measured: Path, write_suite: WriteSuite, words: list[str]
) -> None:
    known = {"RUN": str(measured), "SUITE": str(write_suite())}
    command = shlex.join([*GPUBENCH, *(known.get(word, word) for word in words)])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_goes_on_when_its_reader_has_gone(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    words = ["run", str(write_suite()), "-o", str(tmp_path / "r"), "--cache-dir", str(cache_dir)]
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shlex.join([*WITHOUT_PAGE, *words])} | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read(tmp_path / "r").records) == 4
    assert (tmp_path / "r" / "report.html").exists()


def test_nothing_heavy_is_imported_for_help_and_report(measured: Path) -> None:
    code = (
        "import sys; sys.argv = ['gpubench', *sys.argv[1:]]\n"
        "from gpubench.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'onnxruntime', 'openvino', 'onnx', 'sklearn', 'pandas'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    for words in ["--help"], ["report", str(measured), "-f", "html"]:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_every_command_has_help_with_an_example() -> None:
    import click

    def leaves(group: click.Group) -> list[click.Command]:
        return [
            leaf
            for command in group.commands.values()
            for leaf in (leaves(command) if isinstance(command, click.Group) else [command])
        ]

    commands = leaves(cli)
    assert len(commands) >= 9
    for command in commands:
        assert "Example: " in (command.help or ""), command.name


def test_help_cuts_off_nothing_and_a_missing_suite_has_a_remedy() -> None:
    assert "..." not in gpubench("--help").stdout.partition("Commands:")[2]
    done = gpubench("run")
    assert done.returncode == 2
    assert "Missing argument 'SUITE'" in done.stderr
    assert "gpubench list suites" in done.stderr


@pytest.mark.parametrize(("begun", "found"), [("q", ("plain", "quick")), ("./q", ("file", "./q"))])
def test_suites_are_completed_else_files(begun: str, found: tuple[str, str]) -> None:
    shell = BashComplete(cli, {}, "gpubench", "_GPUBENCH_COMPLETE")
    assert [(c.type, c.value) for c in shell.get_completions(["run"], begun)] == [found]


def test_version_schema_list_and_completion() -> None:
    assert __version__ in gpubench("--version").stdout
    assert json.loads(gpubench("schema").stdout)["type"] == "object"
    assert "resnet50" in gpubench("list", "models").stdout.split()
    assert "quick" in gpubench("list", "suites").stdout
    assert "torch-eager" in gpubench("list", "backends").stdout
    assert "libjpeg-turbo" in gpubench("list", "decoders").stdout
    everything = gpubench("list").stdout
    for word in ("quick", "torch-eager", "libjpeg-turbo", "densenet{121,161,169,201}"):
        assert word in everything
    script = gpubench("completion", "bash").stdout
    assert "_GPUBENCH_COMPLETE" in script
    assert "complete -o nosort -o default " in script  # else no path of a run is completed


def test_cache_info_and_clear(measured: Path, tmp_path: Path) -> None:
    cache = tmp_path / "own"
    (cache / "x").mkdir(parents=True)
    assert str(cache) in gpubench("cache", "info", "--cache-dir", cache).stdout.replace("\n", "")
    done = gpubench("cache", "clear", "--cache-dir", cache)
    assert (done.returncode, done.stdout[:5]) == (0, "freed")


def test_read_only_output_is_bad_input(
    write_suite: WriteSuite, cache_dir: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = gpubench("run", write_suite(), "-o", blocked / "run", "--cache-dir", cache_dir)
    assert done.returncode == 2
    assert str(blocked) in done.stderr


def test_elsewhere_gpubench_only_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match=r"^gpubench run works on Linux .* report, compare, "):
        cli.main(["run", "quick"], standalone_mode=False)
    with pytest.raises(InputError, match="no-such-run"):  # it looks for it
        cli.main(["report", "no-such-run"], standalone_mode=False)


ELSEWHERE = """
import os, signal, sys, warnings
import click, filelock, jinja2, msgspec, numpy, rich.console, scipy.stats  # use what is there
gone = {"fcntl", "grp", "pwd", "resource", "termios", "tty"}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in gone:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Finder())
[sys.modules.pop(name, None) for name in gone]
unknown = ("sched_", "SCHED_", "eventfd", "memfd_", "MFD_", "fork", "getpriority", "PRIO_",
           "getuid", "geteuid", "killpg", "setsid", "getloadavg", "O_CLOEXEC", "O_NOFOLLOW")
[delattr(os, name) for name in dir(os) if name.startswith(unknown)]
[delattr(signal, name) for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "pthread_sigmask")]
sys.platform = "win32"
warnings.filterwarnings("error", category=EncodingWarning, module="gpubench")
from gpubench.cli.main import cli
for words in sys.argv[2:]:
    cli.main(words.split(), standalone_mode=False)
"""


def test_what_reads_needs_nothing_that_only_linux_has(tmp_path: Path) -> None:
    """Nor the encoding that is usual on Linux: a warning of it is an error."""
    (run,) = (Path(__file__).parents[2] / "reports/reference").glob("quick-*")
    page = tmp_path / "page.html"
    commands = (f"report {run} -o {page}", f"history {run}", f"export {run} --format csv")
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", ELSEWHERE, "", *commands],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "in 12 cells over 1 run" in done.stdout
    assert page.stat().st_size > 10_000
