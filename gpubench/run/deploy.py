"""From a suite of one cell to a folder that serves it: made, checked as it lies there, renamed."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from gpubench import __version__, escape
from gpubench.analysis.summary import summarise
from gpubench.errors import GpubenchError, InputError, RecordError, SuiteError, check_text
from gpubench.pipeline.decoders import base as decoders
from gpubench.records import reader
from gpubench.records.record import WEIGHTS_TAKEN, Record
from gpubench.run import availability
from gpubench.run.agent.client import AgentClient
from gpubench.run.agent.messages import Failure, Measure
from gpubench.run.driver import RunJob
from gpubench.run.prepare import NotReady, Ready, prepare
from gpubench.run.record_builder import failed, measured, now
from gpubench.run.serving import compatibility, manifest, readme
from gpubench.run.serving.manifest import Manifest, Measured
from gpubench.run.watcher import Watcher
from gpubench.suite import file as suite_file
from gpubench.suite.types import MIN_SAMPLES, Cell, Policy
from gpubench.workload import reference as ref

DECODER = "pil"
"""Of cells whose boundary has none."""


def one_cell(session: RunJob, suite: str) -> Cell:
    """The plan's only cell. Raises InputError for none or several, and for one that cannot be."""
    planned = session.plan.planned
    if len(planned) != 1:
        keys = ", ".join(f"{cell.key} ({cell.label})" for cell in planned[:3])
        more = ", ..." if len(planned) > 3 else ""
        raise InputError(
            f"{suite}: {len(planned)} cells, and one is deployed: {keys}{more}; choose it with "
            f"--cell KEY (gpubench plan {suite} --keys lists them), or by --backend, --precision, "
            "--batch-size ..."
        )
    for skip in session.plan.skips:
        text = f"{skip.cell.label}: {skip.reason}"
        if skip.status == "unsupported":
            raise InputError(text)
        raise GpubenchError(f"{text}; remedy: {skip.remedy}")
    [cell] = planned
    backend = session.backends[cell.backend]
    if not backend.computes:
        raise InputError(f"{cell.label}: backend {cell.backend} computes nothing to serve")
    if backend.in_flight(cell, cell.cores) > 1:
        raise InputError(
            f"{cell.label}: it keeps several batches in flight, and a deployment's replica "
            "computes one at a time; choose a cell with boundary transfer, or with the hint latency"
        )
    if decoders.get(_decoder(cell)).on_device:
        raise InputError(
            f"decoder {cell.decoder!r} works on the GPU, and a deployment decodes on the host: "
            "deploy the cell with --decoder turbo or --decoder pil"
        )
    return cell


def free(out: Path) -> None:
    """Raises InputError where ``out`` is neither missing nor an empty folder."""
    if out.is_dir() and not out.is_symlink():
        if any(out.iterdir()):
            raise InputError(f"-o {out}: the folder is not empty; name a new one, or remove it")
    elif out.exists() or out.is_symlink():
        raise InputError(f"-o {out}: not a folder; name a new one")


def deploy(session: RunJob, suite: str, out: Path, watcher: Watcher) -> Manifest:
    """Make, check and write the deployment, whole or not at all.

    Raises InputError for a suite or a folder that does not serve, GpubenchError for an artefact
    that cannot be made or answers wrongly.
    """
    cell = one_cell(session, suite)
    check_text(out.absolute())
    free(out)
    aside = _begin(out)
    log, named = Path(tempfile.mkdtemp(prefix="gpubench-deploy-")), False
    try:
        made = _make(session, suite, cell, aside, log / "agent.log", watcher)
        free(out)  # still
        aside.rename(out.absolute())
    except OSError as error:
        raise GpubenchError(f"{error.filename or out}: {error.strerror or error}") from error
    except GpubenchError as error:
        named = str(log) in str(error)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if not named:
            shutil.rmtree(log, ignore_errors=True)
    return made


def _begin(out: Path) -> Path:
    """A new folder beside ``out``, under a name that nobody foresees."""
    place = out.absolute()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{place.name[:100]}.", dir=place.parent))
        aside.chmod(0o755)
    except OSError as error:
        raise InputError(f"-o {out}: cannot be written: {error.strerror}") from error
    return aside


def _make(
    session: RunJob, suite: str, cell: Cell, at: Path, log: Path, watcher: Watcher
) -> Manifest:
    plan, backend = session.plan, session.backends[cell.backend]
    modules = availability.preload([cell], session.backends)
    with AgentClient(modules, session.cache_dir, log) as agent:
        broken = agent.start().errors
        [ready] = prepare(agent, [cell], plan, session.backends, broken, watcher)
        if isinstance(ready, NotReady):
            _refuse(cell, failed(cell, 0, ready.why, ()))
        assert isinstance(ready, Ready)  # noqa: S101  # for mypy
        artefact = Path(backend.export(Path(ready.artefact), at / manifest.MODEL))
        watcher.task(cell, "checking the answers of what was written", 0)
        cores = plan.cores_of(cell)
        reply = agent.ask(Measure(cell, _brief(session), str(artefact), ready.reference, cores))
    if isinstance(reply, Failure):
        _refuse(cell, failed(cell, 0, reply, ()))
    found = measured(cell, 0, reply, {})  # type: ignore[arg-type]
    found = msgspec.structs.replace(found, contents=ready.contents)
    if found.status != "ok" or found.parity is None:
        _refuse(cell, found)
    return _write(session, suite, found, at, artefact, ref.load(Path(ready.reference)))


def _refuse(cell: Cell, found: Record) -> NoReturn:
    remedy = f"; remedy: {found.remedy}" if found.remedy else ""
    kind = f"{found.kind}: " if found.kind else ""
    raise GpubenchError(f"{cell.label}: {kind}{found.reason}{remedy}; nothing was written")


def _brief(session: RunJob) -> Policy:
    """The suite's checks of answers, and next to no timing."""
    return msgspec.structs.replace(
        session.plan.suite.policy,
        warmup_iterations=1, warmup_s=0.01, duration_s=0.01, block_s=0.01, max_samples=MIN_SAMPLES,
    )  # fmt: skip


def _write(
    session: RunJob, suite: str, found: Record, at: Path, artefact: Path, reference: ref.Reference
) -> Manifest:
    cell = found.cell
    if reference.classes:
        names = (escape.visible(name).replace("\n", " ") for name in reference.classes)
        (at / manifest.LABELS).write_text("".join(f"{n}\n" for n in names), encoding="utf-8")
    assert found.parity is not None  # noqa: S101  # for mypy
    cores = [list(own) for own in session.plan.cores_of(cell)] if cell.device == "cpu" else []
    made = Manifest(
        format=manifest.FORMAT,
        gpubench=__version__,
        made=now(),
        suite=session.plan.suite.name,
        cell=cell,
        weights_taken=reference.facts.get(WEIGHTS_TAKEN, ""),
        artefact=artefact.relative_to(at).as_posix(),
        preprocessing=reference.spec,
        decoder=_decoder(cell),
        outputs=reference.logits.shape[1],
        answers=reference.output,
        classes=list(reference.classes),
        cores=cores,
        made_for=compatibility.machine(cell, _decoder(cell)),
        parity=msgspec.structs.replace(found.parity, disagreements=[]),
        measured=_figures(session, suite, found),
        files=manifest.describe(at),
    )
    (at / manifest.MANIFEST).write_text(escape.encoded(made, indent=1), encoding="utf-8")
    (at / manifest.README).write_text(readme.text(made), encoding="utf-8")
    return made


def _decoder(cell: Cell) -> str:
    return cell.decoder if cell.boundary == "pipeline" else DECODER


def _figures(session: RunJob, suite: str, now: Record) -> Measured | None:
    """What the run says whose records lie beside the suite, when it was measured here, and of the
    network that ``now`` is of."""
    cell = now.cell
    with suppress(SuiteError, RecordError):  # no suite's file, no run beside it
        file = reader.read(suite_file.find(suite).parent)
        same = file.header.fingerprint == session.header.fingerprint
        for s in (s for s in summarise([file]) if same and s.key == cell.key and s.ranked):
            if any(r.contents.get("model") != now.contents.get("model") for r in s.records):
                continue
            waits = cell.scenario == "latency"  # for each batch
            return Measured(
                run_id=file.header.run_id,
                repeats=len(s.timed),
                p50_ns=s.p50.value if waits else None,
                p99_ns=s.percentile(0.99).value if waits else None,
                images_per_s=s.throughput.value,
            )
    return None
