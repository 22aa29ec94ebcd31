"""Who this process is where several machines run one suite: by options, torchrun or srun."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from gpubench.errors import InputError
from gpubench.machine.software import CLUSTER_SECRET as SECRET

SECRET_LEAST = 16
SECRET_MOST = 4096
MOST_NODES = 1024
LONGEST_HOST = 253
"""Of a name in the domain name system."""
_ONE_PROCESS = "a node is one gpubench, which starts a worker for every replica"


class Membership(Struct, frozen=True):
    """One of several nodes. Rank 0 leads; ``host`` and ``port`` are where they meet."""

    nnodes: int
    rank: int
    host: str
    port: int
    hosted: bool = False
    """torchrun's agent keeps the store; else rank 0 does."""

    @property
    def endpoint(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def membership(
    nnodes: int | None, node_rank: int | None, endpoint: str | None, environ: Mapping[str, str]
) -> Membership | None:
    """The options' word, filled in from the launcher's; None: this machine is alone.

    Raises InputError for what is incomplete or contradicts itself.
    """
    whole = None not in (nnodes, node_rank, endpoint)
    launched = None if whole or nnodes == 1 else _torchrun(environ) or _srun(environ)
    if nnodes is None and launched is None:
        if node_rank is None and endpoint is None:
            return None
        raise InputError("--node-rank and --rdzv-endpoint: say how many nodes there are: --nnodes")
    size = nnodes if nnodes is not None else launched.nnodes if launched else 1
    rank = node_rank if node_rank is not None else launched.rank if launched else None
    where = endpoint if endpoint is not None else launched.endpoint if launched else None
    if not 1 <= size <= MOST_NODES:
        raise InputError(f"--nnodes {size}: expected the number of machines, 1 to {MOST_NODES}")
    if size == 1 and rank is None:
        return None
    if rank is None or (where is None and size > 1):
        lacking = "--node-rank" if rank is None else "--rdzv-endpoint"
        raise InputError(
            f"--nnodes {size}: {lacking} is missing; on each machine give --node-rank "
            f"0 to {size - 1} and the same --rdzv-endpoint HOST:PORT, an address of rank 0"
        )
    if not 0 <= rank < size:
        raise InputError(f"--node-rank {rank}: of {size} nodes, expected 0 to {size - 1}")
    if where is None or size == 1:
        return None
    hosted = endpoint is None and launched is not None and launched.hosted
    return Membership(size, rank, *_split(where), hosted)


def _split(endpoint: str) -> tuple[str, int]:
    """'node1:29500' or '[::1]:29500'; never an address that means all of them."""
    found = re.fullmatch(r"\[([^\]]+)\]:(\d{1,5})|([^:\s]+):(\d{1,5})", endpoint)
    host, port = ("", 0) if found is None else (found[1] or found[3], int(found[2] or found[4]))
    if not 0 < port < 2**16 or len(host) > LONGEST_HOST:
        shown = endpoint if len(endpoint) <= LONGEST_HOST else f"{endpoint[:60]}..."
        raise InputError(f"--rdzv-endpoint {shown!r}: expected HOST:PORT, such as 10.0.0.1:29500")
    with suppress(OSError, UnicodeError):  # a name: it is looked up when it is needed
        _resolved(endpoint, host, port, socket.AI_NUMERICHOST)
    return host, port


def _resolved(endpoint: str, host: str, port: int, flags: int = 0) -> list[str]:
    """Addresses of ``host``, in whatever form it is written. Raises InputError for all, OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    every = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
    for address in map(ipaddress.ip_address, every):
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        if (mapped or address).is_unspecified:
            raise InputError(
                f"--rdzv-endpoint {endpoint!r}: not all addresses; give the one of rank 0 on the "
                "network that the nodes share"
            )
    return every


def addresses(member: Membership) -> list[str]:
    """What the endpoint's host resolves to, best first. Raises InputError where that is nothing.

    Debian gives a machine's own name a loopback address, which no other machine reaches.
    """
    try:
        every = _resolved(member.endpoint, member.host, member.port)
    except (OSError, UnicodeError) as error:  # UnicodeError: a part of it is too long, or empty
        raise InputError(
            f"--rdzv-endpoint {member.endpoint}: {member.host!r} is not known here: {error}"
        ) from error
    ordered = sorted(every, key=lambda address: ipaddress.ip_address(address).is_loopback)
    named = member.host not in every and member.host != "localhost"
    if named and ipaddress.ip_address(ordered[0]).is_loopback:
        raise InputError(
            f"--rdzv-endpoint {member.endpoint}: {member.host!r} is {ordered[0]} here, which no "
            "other machine reaches; give an address of the network that the nodes share"
        )
    return ordered


def _torchrun(environ: Mapping[str, str]) -> Membership | None:
    """What torchrun tells its workers; None where it has one node, or is not there."""
    if not {"TORCHELASTIC_RUN_ID", "GROUP_RANK", "GROUP_WORLD_SIZE"} <= environ.keys():
        return None
    local = _number(environ, "LOCAL_WORLD_SIZE")
    if local != 1:
        raise InputError(
            f"torchrun started {local} processes on this machine, but {_ONE_PROCESS}: "
            "torchrun --nproc-per-node 1 (or --nnodes 1 to run for itself)"
        )
    nnodes = _number(environ, "GROUP_WORLD_SIZE")
    if nnodes == 1:
        return None
    host, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    where = _split(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    hosted = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Membership(nnodes, _number(environ, "GROUP_RANK"), *where, hosted)


def _srun(environ: Mapping[str, str]) -> Membership | None:
    """What srun tells the tasks of a step; None where it has one node, or is not there.

    Only a step's own variables: a batch script or a shell in an allocation has the job's as well,
    and is alone all the same.
    """
    if not {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_PROCID"} <= environ.keys():
        return None
    tasks, nodes = (_number(environ, f"SLURM_STEP_NUM_{what}") for what in ("TASKS", "NODES"))
    if tasks != nodes:
        raise InputError(
            f"srun started {tasks} tasks on {nodes} machine(s), but {_ONE_PROCESS}: "
            "srun --ntasks-per-node=1 (or --nnodes 1 to run for itself)"
        )
    if nodes == 1:
        return None
    job, step = _number(environ, "SLURM_JOB_ID"), environ.get("SLURM_STEP_ID", "0")
    port = derived_port(job, int(step) if step.isdecimal() else 0)
    first = first_host(environ.get("SLURM_STEP_NODELIST", ""))
    return Membership(nodes, _number(environ, "SLURM_PROCID"), first, port)


def derived_port(job: int, step: int) -> int:
    """The same on every node of a step; below the ports that Linux gives to clients."""
    return 15_000 + (job * 31 + step) % 15_000


def first_host(nodelist: str) -> str:
    """Slurm's notation: 'gpu[03-05,9],login' -> 'gpu03'."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", found[0]) if found else ""


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not re.fullmatch("[0-9]{1,9}", value):
        raise InputError(
            f"the environment variable {name} is {value[:40]!r}, expected a number; give --nnodes, "
            "--node-rank and --rdzv-endpoint instead"
        )
    return int(value)


def secret(member: Membership, file: Path | None, environ: MutableMapping[str, str]) -> bytes:
    """What the nodes share, from ``file`` or the environment; empty on a loopback endpoint.

    The variable is removed: workers, and the backends in them, have no use for it. Raises
    InputError where it is missing, too short or cannot be read.
    """
    said, where = environ.pop(SECRET, "").strip().encode(), SECRET
    if file is not None:
        where = f"--secret-file {file}"
        try:
            with file.open("rb") as stream:
                said = stream.read(SECRET_MOST + 1).strip()
        except OSError as error:
            raise InputError(f"{where}: cannot be read: {error.strerror}") from error
    if SECRET_LEAST <= len(said) <= SECRET_MOST:
        return said
    if said or file is not None:
        raise InputError(
            f"{where}: {len(said)} characters, expected {SECRET_LEAST} to {SECRET_MOST}; "
            "`openssl rand -hex 32` makes one"
        )
    # Does nobody on the network reach it? torchrun's store listens on every address.
    if not member.hosted and all(ipaddress.ip_address(a).is_loopback for a in addresses(member)):
        return b""
    raise InputError(
        f"{member.endpoint} can be reached from the network: every node needs the same secret of "
        f"at least {SECRET_LEAST} characters, in --secret-file FILE or the environment variable "
        f"{SECRET}; `openssl rand -hex 32` makes one"
    )
