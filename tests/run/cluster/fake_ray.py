"""Ray as far as gpubench uses it, in this process: a cluster of one machine, actors as threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from importlib.machinery import ModuleSpec
from queue import Empty, SimpleQueue
from types import ModuleType, SimpleNamespace
from typing import Any

__version__ = "0.0"


class RayError(Exception):
    pass


class GetTimeoutError(RayError):
    pass


class Stream:
    """What a method that yields has said, as it says it."""

    def __init__(self, pool: ThreadPoolExecutor, said: Iterator[bytes]) -> None:
        self.said: SimpleQueue[bytes] = SimpleQueue()
        self.next: list[bytes] = []
        pool.submit(lambda: [self.said.put(each) for each in said])

    def __next__(self) -> bytes:
        return self.next.pop()


class Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor, self._call = actor, getattr(actor.inside, name)

    def options(self, num_returns: str) -> SimpleNamespace:
        assert num_returns == "streaming"
        return SimpleNamespace(remote=lambda *words: Stream(self._actor.pool, self._call(*words)))

    def remote(self, *words: Any) -> Future[Any]:
        if self._actor.dead:
            raise RayError("The actor died unexpectedly before finishing this task.\n\tpid: 1")
        return self._actor.pool.submit(self._call, *words)


class Actor:
    def __init__(self, of: type[Any], max_concurrency: int) -> None:
        self.inside, self.pool, self.dead = of(), ThreadPoolExecutor(max_concurrency), False

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


class Fake(ModuleType):
    """The module `ray`."""

    __version__ = __version__
    exceptions = SimpleNamespace(RayError=RayError, GetTimeoutError=GetTimeoutError)

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.actors: list[Actor] = []
        self.inited: tuple[Any, dict[str, Any]] | None = None

    def init(self, address: str | None, **words: Any) -> None:
        self.inited = address, words

    def shutdown(self) -> None:
        for actor in self.actors:
            actor.inside.stop()
            actor.pool.shutdown(wait=False)

    def nodes(self) -> list[dict[str, Any]]:
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerHostname": "here", "NodeID": "n"}
        gone = node | {"NodeID": "m", "Alive": False, "Resources": {"CPU": 1.0}}
        none = node | {"NodeID": "o", "Alive": True, "Resources": {"memory": 1.0}}
        return [gone, none, node | {"Alive": True, "Resources": {"CPU": 1.0, "memory": 1.0}}]

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: "n")

    def remote(self, of: type[Any]) -> SimpleNamespace:
        def options(max_concurrency: int, **words: Any) -> SimpleNamespace:
            assert (words["num_cpus"], words["num_gpus"]) == (1.0, 0)

            def made() -> Actor:
                self.actors.append(Actor(of, max_concurrency))
                return self.actors[-1]

            return SimpleNamespace(remote=made)

        return SimpleNamespace(options=options)

    def get(self, of: Any, timeout: float | None = None) -> Any:
        if not isinstance(of, Future):
            return of
        try:
            return of.result(timeout)
        except Late:
            raise GetTimeoutError from None

    def wait(self, those: list[Stream], timeout: float) -> tuple[list[Stream], list[Stream]]:
        (stream,) = those
        try:
            stream.next.append(stream.said.get(timeout=timeout))
        except Empty:
            return [], those
        return those, []

    def kill(self, actor: Actor) -> None:
        actor.dead = True


def modules(fake: Fake) -> dict[str, ModuleType]:
    """To be put into `sys.modules`."""
    strategies = ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = lambda *_, soft: soft  # type: ignore[attr-defined]
    return {"ray": fake, "ray.util": ModuleType("ray.util"), strategies.__name__: strategies}
