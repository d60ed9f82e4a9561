"""Loader servers on a Ray cluster: start, look at, scale and end a deployment of them.

Nothing keeps a list of the servers but Ray: each is a detached actor, named after its deployment and a number. An actor
knows what it was made from, so any of them says what another is to be like.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import msgspec
import ray

from shardfeed_server.config import ServerConfig
from shardfeed_server.ray_actor import LoaderServer, Placement, State, server_endpoint
from shardfeed_wire.errors import ConfigError, DataError, NobodyAnswersError
from shardfeed_wire.ray_names import RAY_NAMESPACE, actor_name, check_deployment, number_of

__all__ = ["Deployment", "on_ray"]

_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 1.0


@contextmanager
def on_ray(address: str | None) -> Iterator[None]:
    """Be connected to a Ray cluster: that at ``address``, else that of the variable RAY_ADDRESS, or of this machine.

    Raises NobodyAnswersError where there is none.
    """
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address or "auto", namespace=RAY_NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "here"
        raise NobodyAnswersError(
            f"no Ray cluster {where}: {error}. Start one with `ray start --head`, or pass --address HOST:6379"
        ) from None
    try:
        # Ray tells a driver about nodes that died on the standard output, which is for what was asked.
        with redirect_stdout(sys.stderr):
            yield
    finally:
        ray.shutdown()


class Deployment:
    """The servers of one name. Needs a connection to Ray, as `on_ray` makes it."""

    def __init__(self, name: str) -> None:
        """Ask nobody yet. Raises ConfigError where ``name`` is none."""
        self.name = check_deployment(name)
        self._started: dict[int, Any] = {}  # Ray forgets the name of an actor that cannot come up, and not its handle

    def numbers(self) -> list[int]:
        """Return the numbers of the actors there are, those that wait for a place included."""
        listed = ray.util.list_named_actors(all_namespaces=True)
        found = (number_of(self.name, actor["name"]) for actor in listed if actor["namespace"] == RAY_NAMESPACE)
        return sorted(number for number in found if number is not None)

    def up(self, config: ServerConfig, placement: Placement, servers: int | None) -> int:
        """Start ``servers`` servers (None: as many as fit), and return how many. Does not wait for them.

        Raises ConfigError where the deployment exists, or there is no room for one.
        """
        if self.numbers():
            raise ConfigError(f"deployment {self.name!r} exists; change its size with `shardfeed ray scale`, or end it")
        for node in _nodes():  # where no node may be reached from others is said here, not by each actor
            msgspec.structs.replace(config, bind=(server_endpoint(node["NodeManagerAddress"]),))
        count = servers if servers is not None else _room(placement)
        if count < 1:
            wanted = f"resource {placement.resource!r}" if placement.resource else f"{placement.cpus} CPUs"
            raise ConfigError(f"no node has {wanted}; correct the option, or add such a node to the cluster")
        self._start(range(count), msgspec.msgpack.encode(config), msgspec.msgpack.encode(placement))
        return count

    def scale(self, servers: int) -> int:
        """Start or end servers until there are ``servers``, and return how many there were.

        Those of the highest numbers go. Blocks while those that go answer what is under way. Raises
        ConfigError where there is no such deployment.
        """
        numbers = self.numbers()
        if not numbers:
            raise ConfigError(f"there is no deployment {self.name!r}; start it with `shardfeed ray up`")
        if servers < 1:
            raise ConfigError(f"{servers} servers: a deployment has at least one; end it with `shardfeed ray down`")
        if len(numbers) > servers:
            self._stop(numbers[servers:])
        elif len(numbers) < servers:
            config, placement = self._ask_first(numbers, "given")
            free = [number for number in range(servers + len(numbers)) if number not in numbers]
            self._start(free[: servers - len(numbers)], config, placement)
        return len(numbers)

    def down(self) -> int:
        """End every server, and return how many there were. Blocks while they answer what is under way."""
        numbers = self.numbers()
        self._stop(numbers)
        return len(numbers)

    def states(self) -> dict[int, State | str]:
        """Return how each server is, by number, or in words why that is not known. Blocks for some seconds at most.

        Raises DataError where a server cannot come up, with what it printed.
        """
        states: dict[int, State | str] = {}
        asked = {number: self._actor(number) for number in self.numbers()} | self._started
        waiting = {actor.state.remote(): number for number, actor in asked.items() if actor is not None}
        ready, _ = (
            ray.wait(list(waiting), num_returns=max(1, len(waiting)), timeout=_ANSWER_SECONDS) if waiting else ([], [])
        )
        for reference, number in waiting.items():
            states[number] = "it has no place yet, or makes its manifest"
            if reference in ready:
                try:
                    states[number] = msgspec.msgpack.decode(ray.get(reference), type=State)
                except ray.exceptions.ActorUnavailableError:
                    states[number] = "it is being restarted"
                except ray.exceptions.RayActorError as error:
                    raise DataError(f"server {number} of {self.name!r} cannot come up: {error}") from None
        return dict(sorted(states.items()))

    def wait(self, servers: int, timeout: float, progress: Callable[[int, int], None]) -> None:
        """Return when ``servers`` servers are ready. ``progress`` gets how many are, and all.

        Blocks for up to ``timeout`` seconds. Raises NobodyAnswersError after that, with what Ray has free, and
        DataError as `states`.
        """
        deadline = time.monotonic() + timeout
        while True:
            ready = sum(isinstance(state, State) for state in self.states().values())
            progress(ready, servers)
            if ready >= servers:
                return
            if time.monotonic() > deadline:
                free = {name: units for name, units in ray.available_resources().items() if ":" not in name}
                raise NobodyAnswersError(
                    f"{ready} of {servers} servers of {self.name!r} are up after {timeout:g} s, and the others go on "
                    f"starting. Ray has free: {free}. Look with `shardfeed ray status`, add nodes, or end the "
                    "deployment with `shardfeed ray down`"
                )
            time.sleep(_LOOK_SECONDS)

    def _start(self, numbers: Any, config: bytes, placement: bytes) -> None:
        wanted = msgspec.msgpack.decode(placement, type=Placement)
        actor = ray.remote(LoaderServer)
        for number in numbers:
            self._started[number] = actor.options(
                name=actor_name(self.name, number),
                namespace=RAY_NAMESPACE,
                lifetime="detached",
                max_restarts=-1,
                num_cpus=wanted.cpus,
                resources={wanted.resource: 1} if wanted.resource else None,
                scheduling_strategy="SPREAD",
                max_concurrency=4,  # the state is told while the server is being stopped
            ).remote(config, placement)

    def _stop(self, numbers: list[int]) -> None:
        for number in numbers:
            self._started.pop(number, None)
        actors = [actor for number in numbers if (actor := self._actor(number)) is not None]
        stopping = [actor.stop.remote() for actor in actors]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=60)
        for actor in actors:
            ray.kill(actor, no_restart=True)

    def _actor(self, number: int) -> Any:
        try:
            return ray.get_actor(actor_name(self.name, number), namespace=RAY_NAMESPACE)
        except ValueError:  # it ended meanwhile
            return None

    def _ask_first(self, numbers: list[int], method: str) -> Any:
        """Return what the first actor that answers says."""
        for number in numbers:
            actor = self._actor(number)
            try:
                if actor is not None:
                    return ray.get(getattr(actor, method).remote(), timeout=_ANSWER_SECONDS)
            except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
                continue
        raise NobodyAnswersError(f"no server of {self.name!r} answers; look with `shardfeed ray status`")


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _room(placement: Placement) -> int:
    """Return how many servers fit: one a unit of the resource, else one a node that has the CPUs."""
    nodes = [node["Resources"] for node in _nodes()]
    if placement.resource is not None:
        return sum(int(resources.get(placement.resource, 0)) for resources in nodes)
    return sum(resources.get("CPU", 0) >= placement.cpus for resources in nodes)
