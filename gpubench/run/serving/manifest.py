"""The contents of a deployment: ``deployment.json``, and the files that it vouches for."""

from __future__ import annotations

import stat
from hashlib import sha256
from pathlib import Path, PurePosixPath

import msgspec
from msgspec import Struct

from gpubench import files
from gpubench.cache import digest
from gpubench.errors import InputError
from gpubench.records.parity import Parity
from gpubench.suite.types import Cell
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models.outputs import Kind

FORMAT = 2
"""Raised whenever `read` would misread an older file."""
MOST_BYTES = 2**26
MANIFEST, LABELS, README = "deployment.json", "labels.txt", "README.md"
MODEL = "model"
"""Folder of the artefact."""


class File(Struct, frozen=True):
    """A file as it was written."""

    sha256: str
    bytes: int


class Machine(Struct, frozen=True, kw_only=True):
    """What the artefact was made for, and where it was checked and measured."""

    cpu: str
    """The CPU's name."""
    int8: list[str]
    """Its 8-bit dot products that do not saturate (`quantization.instructions`)."""
    gpu: str = ""
    """Name and compute capability of the first visible GPU; '' for a cell on the CPU."""
    libraries: dict[str, str]
    """Versions of what takes part in computing: of the backend, and of the decoder."""


class Measured(Struct, frozen=True, kw_only=True):
    """The cell's own figures, from the records of a run."""

    run_id: str
    repeats: int
    p50_ns: float | None = None
    p99_ns: float | None = None
    images_per_s: float | None = None


class Manifest(Struct, frozen=True, kw_only=True):
    """Everything that loading needs to know."""

    format: int
    gpubench: str
    """The version that wrote it."""
    made: str
    """UTC, ISO 8601."""
    suite: str
    cell: Cell
    weights_taken: str = ""
    """Of a file that holds several: which, in words."""
    artefact: str
    """What `Backend.open` takes, relative to the manifest."""
    preprocessing: Spec
    decoder: str
    outputs: int
    """Numbers that an image is answered with."""
    answers: Kind = "logits"
    """What they are."""
    classes: list[str]
    """Their names; []: not known."""
    cores: list[list[int]]
    """Per replica, the CPU cores it had; on CUDA []: those next to its GPU are taken."""
    made_for: Machine
    parity: Parity
    """The check of the artefact as it lies here, before it was handed out."""
    measured: Measured | None = None
    files: dict[str, File]
    """By path, relative to the manifest: all but itself and the README, which is for people."""


def describe(root: Path) -> dict[str, File]:
    """Every file below ``root`` but the manifest and the README."""
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {
        name: File(digest(root / name), (root / name).stat().st_size)
        for name in found
        if name not in (MANIFEST, README)
    }


def read(root: Path) -> Manifest:
    """The manifest of the deployment in ``root``. Raises InputError, naming what is wrong."""
    path = root / MANIFEST
    try:
        with files.opened(path) as file:
            data = file.read(MOST_BYTES)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; give a folder that `gpubench deploy` has written"
        ) from error
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version != FORMAT:
            raise InputError(
                f"{path}: format {version}, and this gpubench reads {FORMAT}: load it with the "
                "version that wrote it, or deploy again"
            )
        made = msgspec.json.decode(data, type=Manifest)
        if made.cell.device == "cpu" and len(made.cores) != made.cell.replicas:
            raise ValueError(
                f"cores of {len(made.cores)} replicas, the cell has {made.cell.replicas}"
            )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a deployment's manifest ({error}); deploy again") from error
    return made


def digest_of(manifest: Manifest) -> str:
    """SHA-256 over its files."""
    return sha256(msgspec.json.encode(manifest.files, order="sorted")).hexdigest()


class _Version(Struct):
    format: int


def verify(root: Path, manifest: Manifest) -> None:
    """Raises InputError naming the first file that is missing or is not what was written.

    That finds damage, not forgery: whoever can write here can write the manifest too.
    """
    for name, wanted in manifest.files.items():
        path = root / inside(root, name)
        try:
            info = path.stat()
            if not stat.S_ISREG(info.st_mode):
                problem = "not a file"
            elif info.st_size != wanted.bytes:
                problem = f"has {info.st_size:,} bytes, {wanted.bytes:,} were written"
            elif digest(path) != wanted.sha256:
                problem = f"is not what was written (SHA-256 is not {wanted.sha256[:12]}...)"
            else:
                continue
        except OSError as error:
            problem = str(error.strerror)
        raise InputError(f"{path}: {problem}; copy the whole folder again")


def inside(root: Path, name: str) -> str:
    """``name``, when it stays below the manifest's folder; raises InputError."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise InputError(f"{root / MANIFEST}: {name!r} is no file of this folder; deploy again")
    return name
