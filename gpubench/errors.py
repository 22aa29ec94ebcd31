"""Every exception gpubench raises on purpose.

GpubenchError                 base; the command line prints it without a traceback
|-- InputError                the user's input is wrong: exit code 2
|   |-- SuiteError            a suite file or an option that overrides it
|   |-- RecordError           a record file that is damaged or of another kind
|   |-- CalibrationError      pictures that int8 cannot be calibrated on
|   |-- ChangedError          a file or folder of the workload that changed during the run
|-- CacheError                the cache cannot be used (permissions, disk)
|-- Unsupported               there is no such cell for this network: skipped, with the reason
|-- Unavailable               this machine lacks something: skipped, with the remedy
|-- CellFailed                the cell broke: a record with status ``failed``
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_NO_MEMORY = (
    *("outofmemory", "badalloc", "allocfailed", "cudaerrormemoryallocation", "allocatorfail"),
    *("failedtoallocate", "cannotallocate", "cantallocate", "unabletoallocate"),
    *("allocationfailed", "couldnotallocate", "couldnotbeallocated", "insufficientgpumemory"),
    "smallerthanrequestedbytes",  # of the limit of ONNX Runtime's arena
)
"""How libraries say that memory has ended, in small letters without anything else."""
_PERHAPS = (
    "unabletofindanengine",  # torch, once no plan of cuDNN's got its workspace
    "couldnotfindanyimplementation",  # TensorRT, of a layer all of whose kernels want more
    "insufficientworkspace",
    *("cublasstatusnotinitialized", "cudnnstatusnotinitialized"),  # their handles take memory
)
"""Likewise, what they say of other causes too."""
MAYBE_MEMORY = (
    "the library says this of a lack of memory, and of other causes, too: try a smaller batch"
)


class GpubenchError(Exception):
    """Base of all errors below."""

    kind = "error"
    """What it is for another process: see `told`."""
    remedy = ""


class InputError(GpubenchError):
    """Bad input. The message names the place, the offending value and the remedy."""

    kind = "input"


class SuiteError(InputError):
    """A suite (or a command-line option that overrides one) is not valid."""


class RecordError(InputError):
    """A record file cannot be read; the message names the file and the line."""


class CalibrationError(InputError):
    """Pictures that int8 cannot be calibrated on: no int8 cell could be measured."""

    kind = "calibration"


class ChangedError(InputError):
    """A path of the workload no longer holds what the run was begun with."""

    kind = "changed"


class CacheError(GpubenchError):
    """The cache directory cannot be read or written."""


class Unsupported(GpubenchError):
    """What shows only once the network is known: this cell of it cannot be. The message: why."""

    kind = "unsupported"


class Unavailable(GpubenchError):
    """This machine lacks what a backend needs.

    ``reason`` says what is missing, ``remedy`` is the exact thing to do about it.
    """

    kind = "unavailable"

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class CellFailed(GpubenchError):
    """A cell broke while it was prepared or measured.

    ``kind`` is one of `records.record.FAILURES`, for example ``parity`` or ``out-of-memory``; an
    ``error`` whose words are those of a lack of memory is one.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        if kind == "error" and says_no_memory(reason):
            kind = "out-of-memory"
        elif kind == "error" and _says(_PERHAPS, reason):
            self.remedy = MAYBE_MEMORY
        self.kind = kind
        self.reason = reason


def told(error: BaseException) -> tuple[str, str, str]:
    """(kind, reason, remedy) of an error, for another process, where `raised` makes it again."""
    if isinstance(error, GpubenchError):
        return error.kind, str(error), error.remedy
    kind = "out-of-memory" if isinstance(error, MemoryError) else "error"
    made = CellFailed(kind, f"{type(error).__name__}: {error}".strip(": "))
    return made.kind, made.reason, made.remedy


def says_no_memory(words: str) -> bool:
    """Whether an error's words mean that the device or the host ran out of memory."""
    return _says(_NO_MEMORY, words)


def _says(texts: tuple[str, ...], words: str) -> bool:
    plain = re.sub(r"[^a-z]", "", words.lower())
    return any(text in plain for text in texts)


def raised(kind: str, reason: str, remedy: str = "") -> GpubenchError:
    """What was `told`."""
    if kind == Unavailable.kind:
        return Unavailable(reason, remedy)
    for plain in (InputError, CalibrationError, ChangedError, Unsupported):
        if kind == plain.kind:
            return plain(reason)
    return CellFailed(kind, reason)


def check_text(path: str | Path) -> None:
    """Records and processes take names of files as UTF-8. Raises InputError where one is not, or
    holds a null, which no file's name has."""
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: no file has a null in its name")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        words = f"{os.fsencode(path)!r}: not UTF-8 text; rename that file or folder"
        raise InputError(words) from error


def check_place() -> None:
    """Paths are relative to it, and what fails later would say that of something else."""
    try:
        Path.cwd()
    except OSError as error:
        text = f"the working directory: {error.strerror}; go to one that is there: cd DIR"
        raise InputError(text) from error
