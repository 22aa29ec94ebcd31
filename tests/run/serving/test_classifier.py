"""A deployed `digits` in this process and in replicas' own: answers, errors, threads, ends."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gpubench
from gpubench.errors import CellFailed, InputError
from gpubench.machine.processes import descendants
from gpubench.run.serving import Classifier, Prediction, replica
from gpubench.run.serving.replica import Died
from gpubench.run.serving.replica_pool import Closed
from gpubench.workload.reference import Reference

Deployed = Callable[..., Path]
BACKENDS = ("onnxruntime", "openvino", "torch-eager")


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_are_the_references(
    deploy: Deployed, reference: Reference, inputs: Any, backend: str
) -> None:
    with gpubench.load(deploy(backend=[backend])) as classifier:
        found = classifier.logits(inputs)
        assert found.shape == (13, 10)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference.logits[:13], rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(classifier.logits(inputs[:1])[0], found[0])
        assert classifier.logits(inputs[:0]).shape == (0, 10)
        pictures = [reference.encoded(i) for i in range(13)]
        answers = classifier(pictures)
        assert [a.index for a in answers] == reference.logits[:13].argmax(1).tolist()
        assert [a.label for a in answers] == [str(a.index) for a in answers]
        assert all(0.1 < a.score <= 1 and a.top == () for a in answers)


@pytest.fixture
def classifier(deploy: Deployed) -> Any:
    with gpubench.load(deploy()) as found:
        yield found


def test_an_image_in_whatever_form(
    classifier: Classifier, reference: Reference, tmp_path: Path
) -> None:
    data = reference.encoded(0)
    path = tmp_path / "zero.png"
    path.write_bytes(data)
    picture = Image.open(BytesIO(data))
    pixels = np.asarray(picture.convert("RGB"))
    [expected] = classifier(data)
    forms = [data, path, picture, pixels]
    for one in (*forms, str(path), bytearray(data), memoryview(data), BytesIO(data)):
        assert classifier(one) == [expected]
    with path.open("rb") as file:
        assert classifier(file) == [expected]
    for many in (forms, tuple(forms), iter(forms), np.stack([pixels] * 4)):
        assert classifier(many) == [expected] * 4
    assert classifier([]) == classifier(()) == []
    grey = np.asarray(picture.convert("L"))
    assert classifier(grey) == classifier([np.stack([grey] * 3, 2)])


def test_the_best_of_an_image(classifier: Classifier, reference: Reference) -> None:
    [found] = classifier(reference.encoded(0), top=10)
    assert (found.top[0].index, found.top[0].score) == (found.index, found.score)
    assert sum(p.score for p in found.top) == pytest.approx(1)
    assert [p.score for p in found.top] == sorted((p.score for p in found.top), reverse=True)
    assert isinstance(found.top[9], Prediction)
    assert classifier(reference.encoded(0), top=np.int64(10)) == [found]  # type: ignore[arg-type]
    wrong: tuple[Any, ...] = (0, 11, 2.0, True, "2", None)
    for top in wrong:
        with pytest.raises(InputError, match=f"top = {top!r}: expected (1 to 10|a whole number)"):
            classifier([], top=top)


class Later:
    async def read(self, _: int) -> bytes:
        return b""


def closed() -> BytesIO:
    file = BytesIO()
    file.close()
    return file


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"GIF89a but no more", "not an image"),
        (b"", "not an image"),
        ("/missing.png", r"\('/missing.png'\): no such file"),
        ("a\0.png", r"\('a.x00.png'\): unreadable"),
        (np.zeros((8, 8, 3), np.float32), "an array .8, 8, 3. of float32; expected NumPy's"),
        (np.zeros((8, 8, 4), np.uint8), r"an array .8, 8, 4. of uint8; expected \(H, W, 3\)"),
        (np.uint8(7), r"an? uint8 .. of uint8; expected NumPy's"),
        (torch.zeros((8, 8, 3), dtype=torch.uint8), "a Tensor .8, 8, 3. of torch.uint8"),
        (StringIO("x"), r"a StringIO whose read\(\) gives a str, not bytes: open it in mode 'rb'"),
        (Later(), r"a Later whose read\(\) gives a coroutine, not bytes"),
        (closed(), "a BytesIO that cannot be read: I/O operation on closed file"),
        ([b"x"], "a list; expected encoded bytes"),
        (np.zeros((1, 99, 3), np.uint8), "too narrow"),
        (7, "an int; expected encoded bytes"),
    ],
)
def test_an_unusable_image_is_named_with_the_reason(
    classifier: Classifier, reference: Reference, bad: Any, why: str
) -> None:
    good = reference.encoded(0)
    with pytest.raises(InputError, match=f"image 5.*{why}"):
        classifier([good] * 5 + [bad, good])
    found = classifier([good] * 5 + [bad, good], on_error="return")
    [one] = classifier([good])
    assert found[:5] + found[6:] == [one] * 6, "the others are answered"
    assert isinstance(found[5], InputError)
    assert "image 5" in str(found[5])


def test_what_is_no_picture_and_no_batch(classifier: Classifier) -> None:
    for images, name in ((3, "an int"), ({"a": b"x"}, "a dict"), ({b"x"}, "a set")):
        with pytest.raises(InputError, match=f"^{name}; expected .*, or a list of these"):
            classifier(images)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="on_error = 'skip': expected 'raise' or 'return'"):
        classifier([], on_error="skip")  # type: ignore[call-overload]
    for bad in (np.zeros((1, 3, 31, 32), np.float32), np.zeros((1, 3, 32, 32)), [[1.0]]):
        with pytest.raises(InputError, match=r"expected \(N, 3, 32, 32\) of float32"):
            classifier.logits(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("chosen", [{}, {"backend": ["torch-eager"]}])
def test_many_threads_with_many_sizes(
    deploy: Deployed, reference: Reference, chosen: dict[str, Any]
) -> None:
    wrong: list[object] = []
    with gpubench.load(deploy(**chosen)) as classifier:
        rng = np.random.default_rng(0)
        asked = [rng.integers(0, 32, size) for size in rng.integers(1, 10, 64)]

        def ask(own: list[Any]) -> None:
            try:
                for which in own:
                    found = classifier.logits(np.array(reference.images[which]))
                    np.testing.assert_allclose(found, reference.logits[which], atol=1e-3)
                [one] = classifier(reference.encoded(3))
                assert one.index == reference.logits[3].argmax()
            except BaseException as error:  # noqa: BLE001
                wrong.append(error)

        threads = [threading.Thread(target=ask, args=(asked[i::8],)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_the_calling_threads_stay_unpinned(deploy: Deployed) -> None:
    before = os.sched_getaffinity(0)
    with gpubench.load(deploy()) as classifier:
        own = [t for t in threading.enumerate() if t.name.startswith("gpubench-replica")]
        assert [os.sched_getaffinity(t.native_id or 0) for t in own] == [
            {classifier.manifest.cores[0][0]}
        ]
        assert os.sched_getaffinity(0) == before
    with gpubench.load(deploy(), pin=False):
        own = [t for t in threading.enumerate() if t.name.startswith("gpubench-replica")]
        assert [os.sched_getaffinity(t.native_id or 0) for t in own] == [before]


def test_it_ends_when_it_is_closed_or_forgotten(deploy: Deployed, inputs: Any) -> None:
    classifier = gpubench.load(deploy())
    count = threading.active_count()
    classifier.close()
    classifier.close()
    assert threading.active_count() == count - 1
    with pytest.raises(Closed, match="was closed"):
        classifier.logits(inputs)
    classifier = gpubench.load(deploy())
    del classifier
    gc.collect()
    assert threading.active_count() == count - 1


def test_a_fork_is_told(deploy: Deployed, inputs: Any) -> None:
    classifier = gpubench.load(deploy())
    classifier._pool._pid += 1
    try:
        with pytest.raises(Closed, match="load the classifier in the process"):
            classifier.logits(inputs)
    finally:
        classifier._pool._pid -= 1
        classifier.close()


@pytest.fixture
def two(deploy: Deployed) -> Any:
    """Two replicas, which share this machine's one core where it has no more."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two cores are needed")
    before = descendants([os.getpid()])
    with gpubench.load(deploy(replicas=[2])) as found:
        assert len(descendants([os.getpid()]) - before) == 2
        yield found
    assert descendants([os.getpid()]) <= before


def pids(classifier: Classifier) -> list[int]:
    """Of its replicas: who has the code to start one on the command line."""
    return sorted(
        pid
        for pid in descendants([os.getpid()])
        if b"gpubench.run.serving.replica" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def test_two_replicas_share_the_work_and_outlive_one_another(
    two: Classifier, reference: Reference
) -> None:
    which = np.arange(64) % len(reference.images)
    found = two.logits(np.array(reference.images[which]))
    np.testing.assert_allclose(found, reference.logits[which], atol=1e-3)
    first, second = pids(two)
    cores = {tuple(sorted(os.sched_getaffinity(pid))) for pid in (first, second)}
    assert cores == {tuple(own) for own in two.manifest.cores}
    with pytest.raises(InputError, match="image 1: not an image"):
        two([reference.encoded(0), b"no"])

    batch = np.array(reference.images[:4])
    os.kill(first, signal.SIGKILL)
    died = []
    for _ in range(8):
        try:
            two.logits(batch)
        except Died as error:
            died.append(str(error))
    assert len(died) == 1, "the batch that it had in hand, or none afterwards"
    assert "replica" in died[0]
    assert "by SIGKILL; was it out of memory?; 1 of 2 replicas are left" in died[0]
    os.kill(second, signal.SIGKILL)
    with pytest.raises(Died):
        two.logits(batch)
    with pytest.raises(Closed, match="all replicas have died"):
        two.logits(batch)


def test_a_replica_that_is_stuck_is_ended_and_the_other_goes_on(
    deploy: Deployed, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two cores are needed")
    monkeypatch.setattr(replica, "GRACE_S", 0.01)
    with gpubench.load(deploy(replicas=[2]), timeout_s=0.5) as classifier:
        stopped, other = pids(classifier)
        os.kill(stopped, signal.SIGSTOP)
        died = []
        for _ in range(8):
            try:
                classifier.logits(inputs[:4])
            except Died as error:
                died.append(str(error))
        assert len(died) == 1
        assert re.fullmatch(
            r"replica \d did not answer within 0.5 s, and was ended; 1 of 2 .* left", died[0]
        )
        assert pids(classifier) == [other]
        os.kill(other, signal.SIGSTOP)  # and it is closed nevertheless
        monkeypatch.setattr(replica, "EXIT_S", 0.1)
    assert pids(classifier) == []


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), 1e9, True, "1"])
def test_a_limit_that_bounds_nothing_is_refused(timeout_s: Any) -> None:
    with pytest.raises(InputError, match=f"timeout_s = {timeout_s!r}: expected"):
        gpubench.load("anywhere", timeout_s=timeout_s)


BREAKS = """
import numpy as np
from gpubench.run.serving.replica import Local

def broken(self, rows, run=Local.run):
    if rows[0, 0, 0, 0] == 42:
        raise RuntimeError("told to")
    return run(self, rows)

Local.run = broken
"""


def test_an_error_in_a_replica_is_the_callers(
    deploy: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: Any
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BREAKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two cores are needed")
    with gpubench.load(deploy(replicas=[2])) as classifier:
        bad = inputs.copy()
        bad[4, 0, 0, 0] = 42
        with pytest.raises(CellFailed, match=r"replica \d: RuntimeError: told to"):
            classifier.logits(bad)  # type: ignore[arg-type]
        assert classifier.logits(inputs).shape == (13, 10)


SCRIPT = """
import gpubench, sys, time
classifier = gpubench.load(sys.argv[1])
print("loaded", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("killed", [False, True])
def test_no_replica_outlives_its_caller(deploy: Deployed, tmp_path: Path, killed: bool) -> None:
    """Which need not close it, nor guard its main module."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two cores are needed")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(deploy(replicas=[2])), "60" if killed else "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"loaded\n"
        replicas = descendants([process.pid])
        if killed:
            process.kill()
        assert process.wait(60) == (-signal.SIGKILL if killed else 0)
    end = time.monotonic() + 30
    while any(_runs(pid) for pid in replicas) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(_runs(pid) for pid in replicas)


STUCK = """
import gpubench, os, signal, sys, threading, time
import numpy as np
from gpubench.machine.processes import descendants
classifier = gpubench.load(sys.argv[1], timeout_s=0.5)
for pid in descendants([os.getpid()]):
    os.kill(pid, signal.SIGSTOP)
batch = np.zeros((1, 3, 32, 32), np.float32)
threading.Thread(target=classifier.logits, args=(batch,), daemon=True).start()
"""


@pytest.mark.slow
def test_stuck_replicas_do_not_keep_the_interpreter(deploy: Deployed) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two cores are needed")
    command = [sys.executable, "-W", "ignore", "-c", STUCK, str(deploy(replicas=[2]))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_importing_the_package_is_light() -> None:
    code = (
        "import gpubench, sys; print(*sorted(m for m in sys.modules if '.' in m and 'gpub' in m))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout.strip() == b""
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        gpubench.laod  # noqa: B018


FORKS = """
import gpubench, numpy, os, sys
classifier = gpubench.load(sys.argv[1])
child = os.fork()
if not child:
    if sys.argv[2] == "own":
        with gpubench.load(sys.argv[1]) as own:
            own.logits(numpy.zeros((1, 3, 32, 32), "float32"))
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("own", ["own", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forked_child_ends(deploy: Deployed, backend: str, own: str) -> None:
    """Whether it loads one of its own or none, as a server's worker that is told to stop."""
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(deploy(backend=[backend])), own]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "7\n", done.stderr
