"""The descriptors that a server may have, and that it needs: enough, or it says so before anybody waits for it."""

from __future__ import annotations

import os
import resource

from shardfeed_wire.errors import ConfigError

__all__ = ["check_descriptors", "raise_limit"]

_MOST = 1 << 20
_A_WORKER = 4
"""A slot takes two, and while one is sent from, the next answer is made in another."""

_FOR_CLIENTS = 8
"""For one that works: its connection, its shared memory, one that is made, and who asks for metrics meanwhile."""


def raise_limit() -> None:
    """Let this process have as many descriptors as it may: a connection takes one."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if most == resource.RLIM_INFINITY else min(most, _MOST)
    if wanted > now:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def check_descriptors(workers: int) -> None:
    """Raise ConfigError where this process, which is ready to serve, may not have those that one client needs."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        now = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - not a path each
    except OSError:  # not even that one
        now = limit
    if (needed := now + workers * _A_WORKER + _FOR_CLIENTS) > limit:
        raise ConfigError(
            f"this process may have {limit} descriptors, and needs {needed} to serve: {now} are open, answers take "
            f"{_A_WORKER} a worker (workers = {workers}), and a client takes {_FOR_CLIENTS}. Raise the limit "
            "(ulimit -n, or LimitNOFILE of a service), or ask for fewer workers with --workers"
        )
