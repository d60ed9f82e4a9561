"""Trainers on Ray: where the servers of ``ray://NAME`` are now, and which rank this worker is."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from shardfeed_wire.errors import ConfigError, NobodyAnswersError
from shardfeed_wire.ray_names import RAY, RAY_NAMESPACE, check_deployment, number_of

__all__ = ["RayEndpoints", "ray_train_rank"]

_ANSWER_SECONDS = 2.0


class RayEndpoints:
    """The endpoints of a deployment's servers, asked of Ray at each call: actors move when they or their nodes die.

    Calling it blocks for some seconds, or for as long as Ray takes to say that its cluster cannot be reached. It raises
    NobodyAnswersError where no server of the deployment answers, and ConfigError where it never found a cluster.
    """

    def __init__(self, url: str) -> None:
        """Ask nobody yet. Raises ConfigError where ``url`` is not ``ray://NAME``, or Ray is not installed."""
        self._name = check_deployment(url.removeprefix(RAY))
        self._found_cluster = False

    def __call__(self) -> list[str]:
        """Return the URLs of the servers that are ready now."""
        try:
            ray = _connected(self._name)
        except ConfigError as error:
            if self._found_cluster:  # it was right before: the cluster is away, which may pass
                raise NobodyAnswersError(str(error)) from None
            raise
        self._found_cluster = True
        listed = [
            actor["name"]
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if actor["namespace"] == RAY_NAMESPACE and number_of(self._name, actor["name"]) is not None
        ]
        asked = []
        for name in listed:
            with contextlib.suppress(ValueError):  # it ended meanwhile
                asked.append(ray.get_actor(name, namespace=RAY_NAMESPACE).endpoints.remote())
        ready: list[Any] = []
        if asked:
            ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_SECONDS)
        urls: list[str] = []
        for answer in ready:
            with contextlib.suppress(ray.exceptions.RayError):  # it is being restarted
                urls += ray.get(answer)
        if not urls:
            raise NobodyAnswersError(
                f"{RAY}{self._name}: "
                + (f"none of its {len(listed)} servers is ready" if listed else "Ray knows no such deployment")
                + "; look with `shardfeed ray status`, start it with `shardfeed ray up`"
            )
        return sorted(urls)


def _connected(name: str) -> Any:
    """Return the module ray, connected to a cluster."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"{RAY}{name}: Ray is not installed here; install it with `pip install ray`") from error
    if not ray.is_initialized():
        try:
            ray.init(address="auto", namespace=RAY_NAMESPACE, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{RAY}{name}: this process is in no Ray cluster, and none is here ({error}); run it as a Ray job, "
                "or set RAY_ADDRESS"
            ) from None
    return ray


def ray_train_rank() -> tuple[int, int] | None:
    """Return (rank, world size) of this worker of Ray Train, or None where it is none. Imports nothing."""
    train = sys.modules.get("ray.train")
    if train is None:
        return None
    try:
        context = train.get_context()
        rank, world_size = context.get_world_rank(), context.get_world_size()
    except Exception:  # how it says that this is no worker differs between its releases
        return None
    return (int(rank), int(world_size)) if rank is not None and world_size is not None else None
