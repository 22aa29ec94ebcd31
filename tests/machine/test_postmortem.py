"""What a process died of: the kernel's counters as they look on several machines, last words."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gpubench import errors
from gpubench.errors import CellFailed, says_no_memory
from gpubench.machine.postmortem import Inquest, oom_kills
from gpubench.run.agent import worker
from gpubench.run.agent.messages import Failure

V2 = ("0::/a/b\n", "sys/fs/cgroup/a/b/memory.events")
CASES = {
    "v2": V2,
    "v2 in a container": ("0::/\n", "sys/fs/cgroup/memory.events"),
    "v1": ("4:memory:/a\n0::/\n", "sys/fs/cgroup/memory/a/memory.oom_control"),
    "v1 in a container": ("4:cpu,memory:/docker/1\n", "sys/fs/cgroup/memory/memory.oom_control"),
    "hybrid": ("1:name=systemd:/\n0::/a\n", "sys/fs/cgroup/unified/a/memory.events"),
    "no cgroup": ("", "proc/vmstat"),
}


def raised(error: Exception) -> Failure:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001
        return worker.failure(caught)


def tell(root: Path, group: str, place: str, kills: int) -> None:
    for name, text in (("proc/self/cgroup", group), (place, f"low 0\noom 7\noom_kill {kills}\n")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_the_out_of_memory_killers_count(tmp_path: Path, case: str) -> None:
    assert oom_kills(tmp_path) == 0
    tell(tmp_path, *CASES[case], 3)
    assert oom_kills(tmp_path) == 3


def test_only_a_rise_of_the_count_explains_a_kill(tmp_path: Path) -> None:
    tell(tmp_path, *V2, 3)
    inquest = Inquest(tmp_path, tmp_path / "log")
    assert inquest.verdict(-signal.SIGKILL) == ("crash", "SIGKILL")
    tell(tmp_path, *V2, 4)
    kind, why = inquest.verdict(-signal.SIGKILL)
    assert (kind, why) == ("out-of-memory", "SIGKILL by the kernel's out-of-memory killer")
    assert inquest.verdict(-signal.SIGSEGV) == ("crash", "SIGSEGV")


@pytest.mark.parametrize(
    ("code", "said", "verdict"),
    [
        (3, 'File "/x/harmless.py", line 1 in run', ("crash", "exit code 3")),
        (None, "", ("crash", "exit code None")),
        (-signal.SIGRTMIN - 1, "", ("crash", f"exit code {-signal.SIGRTMIN - 1}")),
        (
            -signal.SIGABRT,
            "terminate called after throwing an instance of 'std::bad_alloc'\n"
            "  what():  std::bad_alloc\n",
            ("out-of-memory", "SIGABRT (terminate called after throwing an instance of "
             "'std::bad_alloc' what(): std::bad_alloc)"),
        ),
        (
            -signal.SIGSEGV,
            "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n"
            '  File "/x/onnxruntime.py", line 12 in run\n  File "/x/worker.py", line 1 in main\n',
            ("crash", "SIGSEGV in run (onnxruntime.py:12) "
             "(Fatal Python error: Segmentation fault)"),
        ),
    ],
)  # fmt: skip
def test_last_words(tmp_path: Path, code: int | None, said: str, verdict: tuple[str, str]) -> None:
    log = tmp_path / "log"
    log.write_text("terminate called by another\n")  # before the inquest
    inquest = Inquest(tmp_path, log)
    with log.open("a") as more:
        more.write(said)
    assert inquest.verdict(code) == verdict


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "CUDA failure 2: CUDA_ERROR_OUT_OF_MEMORY",
        "Failed to allocate memory for requested buffer of size 1048576",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "std::bad_alloc",
        "OutOfMemory (no further information)",
        "[Errno 12] Cannot allocate memory",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDNN failure 4001: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ; GPU=0",
        "Allocation on device 0 would exceed allowed memory. (out of memory)",
        "CudaMempoolArena::Alloc: cudaMallocFromPoolAsync failed: out of memory",
        "Available memory of 4096 is smaller than requested bytes of 8192",
        "Requested amount of GPU memory (1 bytes) could not be allocated. There may not be enough",
        "Engine cannot be deserialized: INSUFFICIENT_GPU_MEMORY",
        "nvJPEG error: NVJPEG_STATUS_ALLOCATOR_FAILURE",
    ],
)
def test_how_libraries_say_that_memory_ended(words: str) -> None:
    assert says_no_memory(words)
    assert raised(RuntimeError(words)).kind == "out-of-memory"
    assert errors.told(RuntimeError(words))[0] == "out-of-memory", "serving, loaders"
    assert CellFailed("error", f"X refuses: {words}").kind == "out-of-memory", "in other words"


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "Could not find any implementation for node conv1 + relu",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate(handle)",
    ],
)
def test_what_may_be_a_lack_of_memory_says_so(words: str) -> None:
    found = raised(RuntimeError(words))
    assert (found.kind, found.remedy) == ("error", errors.MAYBE_MEMORY)
    assert errors.told(RuntimeError(words))[2] == errors.MAYBE_MEMORY
    assert CellFailed("error", words).remedy == errors.MAYBE_MEMORY


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: an illegal memory access",
        "memory format",
        "",
        "Allocation of 64 bytes failed because the stream is capturing a CUDA graph",
    ],
)
def test_other_words_about_memory(words: str) -> None:
    assert not says_no_memory(words)
    assert (raised(RuntimeError(words)).kind, raised(RuntimeError(words)).remedy) == ("error", "")


def test_what_a_backend_found_out_itself_stays() -> None:
    assert raised(CellFailed("fallback", "out of memory?")).kind == "fallback"
