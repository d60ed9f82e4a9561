"""How many cores a process may use: those it may run on, and what a container's quota leaves of them."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["count_cores"]

_CGROUP = Path("/sys/fs/cgroup")


def count_cores(cgroup: Path = _CGROUP) -> int:
    """Return how many cores this process may use, at least 1: a container's quota of 1.5 is two, for one would idle.

    ``cgroup`` is where the kernel tells of quotas: ``cpu.max`` of version 2, ``cpu.cfs_quota_us`` of version 1
    (docs.kernel.org/admin-guide/cgroup-v2.html, docs.kernel.org/scheduler/sched-bwc.html). Both are of this process in
    a container, whose own cgroup lies there; outside of one a quota further down is not looked for.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Return the quota in cores; None where there is none, or none can be read."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        part = int(quota) / int(period)  # "max" in version 2, -1 in version 1: none
    except (ValueError, ZeroDivisionError):
        return None
    return part if part > 0 else None
