"""Several machines through Ray: an actor on each owns an agent there, and is asked as one is here.

Requests and replies are the JSON bytes that an agent reads and writes. Nothing else in gpubench
knows of Ray, and nothing of it is imported for one machine. Ray says when a machine is lost
(docs.ray.io, "Fault tolerance"); a worker that is silent is its agent's affair.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, Self, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gpubench import __version__
from gpubench.cache import Cache
from gpubench.cache import digest as files_digest
from gpubench.errors import GpubenchError, InputError
from gpubench.machine import cores, environment, processes
from gpubench.machine.software import no_telemetry
from gpubench.run import availability, inventory
from gpubench.run.agent import messages
from gpubench.run.agent.client import GRACE_S, AgentClient, OnProgress, limit_s
from gpubench.run.availability import family
from gpubench.run.inventory import Node
from gpubench.run.plan import Plan
from gpubench.run.prepare import not_importable, question
from gpubench.suite.types import Cell, Suite

T = TypeVar("T")
U = TypeVar("U")
JOIN_S = 120.0
"""For an actor to start: it waits while other work of the cluster has its node's devices."""
STOP_S = 15.0
MOST_BYTES = 2 << 30
"""Of a file that is shipped: an object of Ray's store, which each machine holds in memory."""
Parcel = tuple[str, str, Any]
"""A path in the suite, the SHA-256 of the file, and Ray's reference to its bytes."""
LOOK_S = 1.0
"""How soon whoever waits for a machine notices that the run is over."""
LOST = "node-lost"
AS_HERE = {"RAY_kill_child_processes_on_worker_exit": "0", "RAY_worker_niceness": "0"}
"""Ray would kill the agent of an actor that ends before it can tidy up, and measure at nice 15."""
UV_HOOK = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
EXTRA = "pip install 'gpubench[ray]'"
OPEN = (
    "the cluster takes orders from whoever reaches it: start it with RAY_AUTH_MODE=token on every "
    "node (docs: Several machines), or accept that with --insecure-cluster"
)


class Greeting(Struct, frozen=True):
    """What a machine says before it is asked for anything; all versions can read it."""

    version: str
    protocol: int
    token: bool
    """Whether its part of the cluster asks for a token."""
    environment: dict[str, Any]


class NodeActor:
    """Lives on a machine of the cluster, in a process of Ray's."""

    def __init__(self) -> None:
        _as_started()
        self._aside = Aside(_log().parent.parent)
        self._suite: Suite
        self._held = ExitStack()
        self._agent: AgentClient | None = None
        self._turn = Lock()
        self._broken: dict[str, str] = {}
        self._made: dict[object, str] = {}
        """Paths here: of references by workload and input, of artefacts by family of cells."""
        self._shipped: dict[str, str] = {}
        """Paths in the suite -> where the file lies here, of those that came with it."""

    def greet(self, command: list[str]) -> bytes:
        """A `Greeting`."""
        token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        found = environment.collect(command)
        return msgspec.json.encode(Greeting(__version__, messages.PROTOCOL, token, found))

    def offer(self, suite: bytes, rank: int, parcels: Sequence[Parcel], cache_dir: str) -> bytes:
        """What this machine has for it, and the digest of it and of its files as found here.

        ``parcels``: files that are put into the cache where they lack.
        """
        cache = _cache(cache_dir)
        lacking = [parcel for parcel in parcels if not _has(Path(parcel[0]), parcel[1])]
        self._shipped = {parcel[0]: str(_unpacked(*parcel, cache)) for parcel in lacking}
        found = inventory.digest(msgspec.json.decode(suite, type=Suite), self._shipped)
        self._suite = msgspec.json.decode(self._localised(suite), type=Suite)
        self._node = inventory.here(rank, self._suite)
        return msgspec.json.encode((found, self._node))

    def _localised(self, words: bytes) -> bytes:
        """With the paths of this machine."""
        for path, here in self._shipped.items():
            words = words.replace(msgspec.json.encode(path)[1:-1], msgspec.json.encode(here)[1:-1])
        return words

    def ask(self, request: bytes) -> Iterator[bytes]:
        """Its replies; the last is no `messages.Progress`."""
        with self._turn:
            try:
                words = self._localised(request)
                for reply in self._replies(msgspec.json.decode(words, type=messages.Request)):
                    yield msgspec.json.encode(reply)
            except Exception as error:  # noqa: BLE001  # whoever asked would not know it
                yield msgspec.json.encode(messages.Failure("error", str(error) or repr(error)))

    def stop(self) -> None:
        """End the agent and all its processes, whatever they do."""
        if self._agent is not None:
            self._agent.kill()  # whoever waits for its answer is told
        with self._turn:
            self._held.close()
            self._aside.keep_off([])

    def _replies(self, request: messages.Request) -> Iterator[messages.Reply]:
        own = self._own(request)
        if isinstance(own, messages.Failure):
            yield own
            return
        if isinstance(own, messages.Preload):
            self._agent = AgentClient(own.modules, _cache(own.cache_dir).root, _log())
            self._held.enter_context(self._agent)
            found = self._agent.start()
            self._broken = found.errors
            yield found
            return
        assert self._agent is not None, "it was started"  # noqa: S101
        for reply in self._agent.replies(own):
            if isinstance(reply, messages.Prepared):
                if isinstance(request, messages.Prepare):
                    self._made[family(request.cell)] = reply.path
                elif isinstance(request, messages.BuildReference):
                    self._made[question(request)] = reply.path
            yield reply

    def _own(self, request: messages.Request) -> messages.Request | messages.Failure:
        """The request with this machine's paths and cores."""
        if isinstance(request, messages.Prepare):
            if lack := self._lack(request.cell):
                return lack
            return replace(request, cores=self._places(request.cell)[0])
        if isinstance(request, messages.Gauge):
            return replace(request, cores=tuple(cores.usable_cores()[: len(request.cores)]))
        if isinstance(request, messages.Measure):
            return self._measure(request)
        if isinstance(request, messages.Begin):
            measure = self._measure(request.measure)
            return measure if isinstance(measure, messages.Failure) else replace(
                request, measure=measure)  # fmt: skip
        return request

    def _measure(self, asked: messages.Measure) -> messages.Measure | messages.Failure:
        cell = asked.cell
        artefact = self._made.get(family(cell))
        reference = self._made.get(question(cell))
        if artefact is None or reference is None:
            return messages.Failure("error", f"{cell.label} was not prepared on {self._node.name}")
        places = self._places(cell)[: len(asked.cores)]
        self._aside.keep_off(places)
        return replace(asked, artefact=artefact, reference=reference, cores=places)

    def _lack(self, cell: Cell) -> messages.Failure | None:
        """Why its backend, or its decoder, cannot run here."""
        for part in availability.parts(cell):
            if lack := self._node.lacks.get(part):
                return messages.Failure("unavailable", lack.reason, lack.remedy)
        return not_importable(cell, availability.backends_of(self._suite), self._broken)

    def _places(self, cell: Cell) -> list[tuple[int, ...]]:
        return Plan(self._suite, [cell], [], cores.usable_cores()).cores_of(cell)


def _log() -> Path:
    """Of this process, in the directory of Ray's session."""
    return Path(os.path.realpath("/proc/self/fd/2"))


def _cache(directory: str) -> Cache:
    """``directory``: '', this machine's own."""
    return Cache(Path(directory) if directory else None)


def _has(path: Path, digest: str) -> bool:
    return path.is_file() and files_digest(path) == digest


def _unpacked(path: str, digest: str, content: Any, cache: Cache) -> Path:
    """Where the file lies in the cache now."""
    import ray

    name = Path(path).name

    def make(place: Path) -> None:
        ray.get(content).tofile(place / name)
        if not _has(place / name, digest):
            raise GpubenchError(f"{path}: did not arrive whole")

    return cache.get_or_make("shipped", {"sha256": digest, "name": name}, make) / name


def _as_started() -> None:
    """Ray tells OpenMP how many threads to use, which is for backends to say: as in `ray start`."""
    with suppress(OSError):
        given = Path(f"/proc/{os.getppid()}/environ").read_text().split("\0")
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ |= {k: v for k, _, v in (x.partition("=") for x in given) if k[:4] == "OMP_"}


class Aside:
    """Ray's processes of this machine, off the cores that are measured where others are left."""

    def __init__(self, session: Path) -> None:
        """``session``: Ray's directory, which the commands of the first of them name."""
        self._session, note = session, session / "gpubench-cores"
        self._is_rays = session.name.startswith("session_")
        self._all = set(cores.usable_cores())
        if self._is_rays and note.exists():  # an actor before may have been killed meanwhile
            self._all = set(cores.cpu_list(note.read_text()))
            self._move(os.getpid(), self._all)
        elif self._is_rays:
            with suppress(OSError):  # a full disk is no reason not to measure
                note.write_text(cores.cpu_ranges(self._all))
        self.keep_off([])

    def keep_off(self, measured: Sequence[Sequence[int]]) -> None:
        """Let them have what is left of the cores; all, if that is nothing."""
        free = self._all.difference(*measured) or self._all
        for pid in self._processes() if self._is_rays else ():
            self._move(pid, free)

    def _processes(self) -> set[int]:
        """Of Ray, but for this one and what it has started."""
        found = processes.naming(str(self._session))
        found |= processes.descendants(found)
        return found - {os.getpid(), *processes.descendants([os.getpid()])}

    def _move(self, pid: int, to: Collection[int]) -> None:
        with suppress(OSError):
            for thread in [*Path(f"/proc/{pid}/task").iterdir()]:
                with suppress(ProcessLookupError):  # it has ended
                    os.sched_setaffinity(int(thread.name), to)


class Peer:
    """A machine of the run, as whoever asks it sees it."""

    def __init__(self, actor: Any, name: str) -> None:
        """``name``: of the machine, until its node says more."""
        self._actor, self.name = actor, name
        self.node: Node
        self.environment: dict[str, Any] = {}
        self._lost = ""
        self._over = False

    def call(self, method: str, *words: object, limit_s: float | None = None) -> bytes:
        """What its actor answers. Raises InputError where it does not."""
        import ray

        try:
            found: bytes = ray.get(getattr(self._actor, method).remote(*words), timeout=limit_s)
        except ray.exceptions.GetTimeoutError:
            raise InputError(
                f"{self.name}: gpubench did not start within {limit_s:g} s: its CPUs and GPUs are "
                "used by other work of the cluster (`ray status` shows it; wait for it, or stop "
                "it), or Ray could not start a process (raylet.err in session_latest/logs there)"
            ) from None
        except ray.exceptions.RayError as error:
            raise InputError(f"{self.name}: {_reason(error)}") from error
        return found

    def ask(self, request: messages.Request, progress: OnProgress | None = None) -> messages.Reply:
        """Its answer; where the machine is lost, now or earlier, a Failure that says how."""
        import ray

        end = monotonic() + limit_s(request) + GRACE_S
        try:
            answers = None
            while not (self._over or self._lost):
                answers = answers or self._actor.ask.options(num_returns="streaming").remote(
                    msgspec.json.encode(request)
                )
                if ray.wait([answers], timeout=LOOK_S)[0]:
                    said = ray.get(next(answers))
                    reply: messages.Reply = msgspec.json.decode(said, type=messages.Reply)
                    if not (self._over or isinstance(reply, messages.Progress)):
                        return reply
                    if progress is not None and isinstance(reply, messages.Progress):
                        progress(reply)
                elif monotonic() > end:
                    ray.kill(self._actor)
                    self._lost = f"{self.name}: the process that Ray started there hung"
        except (ray.exceptions.RayError, StopIteration) as error:
            self._lost = f"{self.name}: {_reason(error) or 'it said nothing'}"
        if self._over:
            raise KeyboardInterrupt
        return messages.Failure(LOST, self._lost)

    def leave(self) -> None:
        """End its agent; whoever waits for its answer is interrupted, and nothing is stored."""
        self._over = True
        self.stop()

    def stop(self) -> None:
        """End its agent."""
        try:
            if not self._lost:
                self.call("stop", limit_s=STOP_S)
        except InputError as error:
            self._lost = str(error)  # so that nobody waits for it


def each(work: Callable[[T], U], those: Collection[T]) -> list[U]:
    """What ``work`` makes of each, all at once."""
    with ThreadPoolExecutor(max(1, len(those))) as pool:
        return list(pool.map(work, those))


def _reason(error: Exception) -> str:
    """Ray's own words, in one line, without the addresses that it prints below them."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(_DETAILS)]
    return " ".join(kept)[:600]


_DETAILS = ("class_name:", "actor_id:", "pid:", "namespace:", "ip:", "File ", "ray::", "repr:")


class Cluster:
    """The machines of a run. Enter it before anything that can fail; the exit leaves nothing."""

    def __init__(self, address: str = "", insecure: bool = False, ship: bool = False) -> None:
        """``address``: of a running cluster; '': RAY_ADDRESS, the one that runs here, or one of
        this machine alone. ``insecure``: it need not ask for a token. ``ship``: model and weights
        files go where they lack."""
        if address and ":" not in address:
            raise InputError(
                f"--ray {address!r}: expected HOST:PORT of a running cluster; nothing stands for "
                "the one of this machine (then let --ray be the last option, after the suite)"
            )
        self._address, self._insecure, self._ship = address, insecure, ship
        self.peers: list[Peer] = []
        """By rank: this machine first, if it is one of them."""

    @property
    def nodes(self) -> list[Node]:
        """The machines, by rank."""
        return [peer.node for peer in self.peers]

    @property
    def environments(self) -> list[dict[str, Any]]:
        """What each is, as a run records it."""
        return [peer.environment for peer in self.peers]

    def __enter__(self) -> Self:
        if find_spec("ray") is None:
            raise InputError(f"several machines need Ray, which is not installed here: {EXTRA}")
        no_telemetry()
        import ray
        from ray._private import ray_constants

        # Under `uv run`, Ray would build the project in the working directory anew on every node;
        # it has read the variable when it was imported, which may be long ago.
        hook = getattr(ray_constants, UV_HOOK, False)
        setattr(ray_constants, UV_HOOK, hook and UV_HOOK in os.environ)
        before = signal.getsignal(signal.SIGTERM)
        ours: dict[str, Any] = {"include_dashboard": False} if not self._address else {}
        try:
            ray.init(self._address or None, log_to_driver=False, logging_level=logging.ERROR,
                     namespace="gpubench", **ours)  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = self._address or os.environ.get("RAY_ADDRESS") or "a cluster of this machine"
            raise InputError(f"--ray {where}: {_reason(error)}") from error
        finally:
            if signal.getsignal(signal.SIGTERM) is not before:  # only of the main thread it is
                signal.signal(signal.SIGTERM, before)
            setattr(ray_constants, UV_HOOK, hook)
        try:
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()  # which ends the actors, and with each its agent

    def _join(self) -> None:
        import ray

        here = ray.get_runtime_context().get_node_id()
        nodes = [n for n in ray.nodes() if n["Alive"] and {"CPU", "GPU"} & n["Resources"].keys()]
        nodes.sort(key=lambda n: (n["NodeID"] != here, n["NodeManagerAddress"], n["NodeID"]))
        if not nodes:
            raise InputError("the cluster has no node with a CPU or a GPU to use: `ray status`")
        self.peers = [_placed(n) for n in nodes]
        alone = len(nodes) == 1 and nodes[0]["NodeID"] == here
        each(lambda peer: self._welcome(peer, ray.__version__, alone), self.peers)

    def _welcome(self, peer: Peer, version: str, alone: bool) -> None:
        """``version``: of Ray; ``alone``: the cluster is this machine. Raises InputError."""
        from gpubench.run.record_builder import command

        said = peer.call("greet", command(), limit_s=JOIN_S)
        found = msgspec.json.decode(said, type=Greeting)
        if (found.version, found.protocol) != (__version__, messages.PROTOCOL):
            raise InputError(
                f"{peer.name} has gpubench {found.version} (protocol {found.protocol}), here is "
                f"{__version__} ({messages.PROTOCOL}); install the same everywhere"
            )
        if not (found.token or self._insecure or alone):
            raise InputError(f"{peer.name}: {OPEN}")
        engine = f"Ray {version}" + ("" if found.token else ", without a token")
        peer.environment = found.environment | {"engine": engine}

    def gather(self, suite: Suite, cache_dir: Path | None = None) -> None:
        """Let every machine say what it has for ``suite``. Raises InputError for a misfit."""
        mine, words = inventory.digest(suite), msgspec.json.encode(suite)
        parcels = [_parcel(path) for path in inventory.network_files(suite) if self._ship]
        own_cache = str(cache_dir or "")

        def offered(rank: int) -> None:
            peer = self.peers[rank]
            said = peer.call("offer", words, rank, parcels, own_cache)
            theirs, peer.node = msgspec.json.decode(said, type=tuple[str, Node])
            peer.name = peer.node.name
            if theirs != mine:
                raise InputError(
                    f"{peer.name}: the suite and the files that it names are others there (SHA-256 "
                    f"{theirs[:12]}, here {mine[:12]}); put the same files at the same paths, or "
                    "send a model or weights file with --ship"
                )

        each(offered, range(len(self.peers)))

    def keep(self, environments: Sequence[dict[str, Any]]) -> None:
        """Only machines like these, in this order; all where there are not so many."""
        left, kept = list(self.peers), []
        for one in map(environment.fingerprint, environments):
            like = (peer for peer in left if environment.fingerprint(peer.environment) == one)
            if (peer := next(like, None)) is None:
                return
            left.remove(peer)
            kept.append(peer)
        self.peers = kept

    def alone(self, rank: int) -> Cluster:
        """One of its machines, as a cluster; it is not to be entered."""
        found = Cluster(self._address, self._insecure, self._ship)
        found.peers = [self.peers[rank]]
        return found

    def differ(self, ranks: Sequence[int]) -> bool:
        """Whether these nodes differ in what matters to a measurement."""
        return len({environment.fingerprint(self.environments[rank]) for rank in ranks}) > 1


def _parcel(path: str) -> Parcel:
    """Raises InputError for what cannot be shipped."""
    import numpy as np
    import ray

    if not Path(path).is_file() or Path(path).stat().st_size > MOST_BYTES:
        raise InputError(f"--ship: {path}: is no file of at most 2 GiB: copy it to every machine")
    try:
        content = ray.put(np.fromfile(path, np.uint8))
    except ray.exceptions.RayError as error:
        raise InputError(f"--ship: {path}: {_reason(error)}") from error
    return path, files_digest(Path(path)), content


def _placed(node: dict[str, Any]) -> Peer:
    """An actor on that node, with all of its devices: nothing else is to run beside it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    resources = node["Resources"]
    actor = ray.remote(NodeActor).options(
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        max_concurrency=2,  # to be stopped while it is asked
        runtime_env={"env_vars": AS_HERE},
        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    )
    return Peer(actor.remote(), f"node {node['NodeManagerHostname']}")
