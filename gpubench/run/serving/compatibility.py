"""Whether a deployment fits this machine, and where its replicas run here."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from contextlib import ExitStack
from itertools import islice
from weakref import WeakSet

from gpubench.backends import base
from gpubench.errors import InputError, Unavailable
from gpubench.machine import environment, gpu
from gpubench.machine.cores import usable_cores
from gpubench.pipeline.decoders import base as decoders
from gpubench.run.serving.manifest import Machine, Manifest
from gpubench.suite.types import Cell
from gpubench.workload.models import quantization

ENGINES = ("tensorrt", "torch-tensorrt", "torch-compile", "aot-inductor")
"""Backends, and providers of ONNX Runtime, whose artefact is machine code for one device."""


class DeploymentWarning(UserWarning):
    """It will work, but is not what was checked and measured."""


def machine(cell: Cell, decoder: str) -> Machine:
    """This one, as far as ``cell`` depends on it. Raises Unavailable, InputError."""
    gpus = gpu.visible_gpus() if cell.device == "cuda" else []
    if cell.device == "cuda" and not gpus:
        raise Unavailable(
            "no NVIDIA GPU is visible", "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        )
    facts = base.get(cell.backend).probe_to_open() | decoders.get(decoder).probe()
    return Machine(
        cpu=environment.cpu_model(),
        int8=quantization.instructions(),
        gpu=f"{gpus[0].name}, compute capability {gpus[0].compute_capability}" if gpus else "",
        libraries={k: v for k, v in facts.items() if isinstance(v, str) and k not in _NO_VERSION}
        | facts.get("flavours", {}),
    )


_NO_VERSION = ("c++", "gpu")
"""Facts of a probe that are no version of a library."""


def check(manifest: Manifest, here: Machine) -> None:
    """Warn of what differs from where it was checked. Raises InputError where it cannot be right.

    A backend's own `open` checks more: TensorRT its version, OpenVINO the precision it computes in.
    """
    cell, made = manifest.cell, manifest.made_for
    again = "deploy again on this machine"
    on_gpu = cell.device == "cuda"
    before, now = (made.gpu, here.gpu) if on_gpu else (made.cpu, here.cpu)
    if before != now:
        if {cell.backend, cell.options.get("provider")} & {*ENGINES}:
            raise InputError(
                f"{cell.backend}: its machine code was made for {before}, and this machine has "
                f"{now}: {again}"
            )
        _warn(f"it was measured on {before}; this machine has {now}")
    if not on_gpu and cell.precision == "int8" and made.int8 and not here.int8:
        raise InputError(
            f"int8 was made for a CPU with {', '.join(made.int8)}; this one ({now}) has none of "
            f"these, and its 8-bit products saturate: {again}"
        )
    other = [
        f"{name} {version} (here {here.libraries.get(name, 'none')})"
        for name, version in made.libraries.items()
        if here.libraries.get(name) != version
    ]
    if other:
        _warn(f"its answers were checked with {', '.join(other)}; to check them here, {again}")


def _warn(text: str) -> None:
    warnings.warn(text, DeploymentWarning, stacklevel=4)


def places(manifest: Manifest, pin: bool) -> tuple[list[tuple[int, ...]], ExitStack]:
    """Per replica, the cores to be pinned to, () where it is not; and the claims to them.

    The same that the cell had, or as many others, that no other classifier on this machine has
    claimed; not pinned, with a warning, where there are too few.
    """
    cell, wanted = manifest.cell, [tuple(cores) for cores in manifest.cores]
    claims = ExitStack()
    if not pin:
        return [()] * cell.replicas, claims
    if cell.device == "cuda":
        return [environment.near_cores(_gpu(cell, i)) for i in range(cell.replicas)], claims
    usable, sets = usable_cores(), list(dict.fromkeys(wanted))
    own = [core for cores in sets for core in cores]
    held: list[int] = []
    for core in dict.fromkeys([*(core for core in own if core in usable), *usable]):
        if len(held) < len(own) <= len(usable) and _claim(core, claims):
            held.append(core)
    if len(held) == len(own):
        ours = iter(own if {*held} == {*own} else held)
        others = {cores: tuple(islice(ours, len(cores))) for cores in sets}
        return [others[cores] for cores in wanted], claims
    claims.close()
    few = f"are more than the {len(usable)} usable here"
    if len(own) <= len(usable):
        few = (
            f"are more than are left: other classifiers are pinned to {len(usable) - len(held)} "
            f"of the {len(usable)} usable here; start fewer"
        )
    _warn(f"the {len(own)} core(s) of {cell.replicas} replica(s) {few}: not pinned, not as fast")
    return [()] * len(wanted), claims


CLAIM = "gpubench-core"
"""Before a core's number: the name that claims it."""
_HELD: WeakSet[socket.socket] = WeakSet()
"""What claims a core for a classifier of this process."""


def _claim(core: int, claims: ExitStack) -> bool:
    """Whether no classifier on this machine had claimed ``core``; now one has.

    By a name of Linux's own that exists while a socket has it: nothing is left by who is killed.
    """
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0{CLAIM}-{core}")
    except OSError as error:
        holder.close()
        return error.errno != errno.EADDRINUSE  # where there are no such names, none is claimed
    _HELD.add(claims.enter_context(holder))
    return True


def _unclaim() -> None:
    """A fork has no replicas: what its parent claims is its parent's alone."""
    for holder in list(_HELD):
        holder.close()


os.register_at_fork(after_in_child=_unclaim)


def device(cell: Cell, replica: int, cores: tuple[int, ...], *, own_process: bool) -> base.Device:
    """Where a replica runs; its thread pools have the cell's threads, pinned or not.

    ``own_process``: its GPU is all it sees, as where it was measured: set before CUDA starts.
    """
    if cell.device != "cuda":
        return base.Device("cpu", 0, cores or tuple(range(cell.cores)))
    one = _gpu(cell, replica)
    if own_process:
        os.environ["CUDA_VISIBLE_DEVICES"] = one.uuid
    return base.Device("cuda", 0 if own_process else one.index, uuid=one.uuid, number=one.index)


def _gpu(cell: Cell, replica: int) -> gpu.Gpu:
    index, visible = replica // cell.replicas_per_device, gpu.visible_gpus()
    if index >= len(visible):
        raise Unavailable(
            f"replica {replica} needs GPU {index}; visible: {len(visible)}",
            "use a machine with more GPUs, or deploy a cell with fewer replicas",
        )
    return visible[index]
