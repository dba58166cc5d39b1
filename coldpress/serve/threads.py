"""How many threads to compute with: the CPUs this process may really use."""

import math
import os
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus() -> int:
    """CPUs in the affinity mask, fewer when a container's quota (``--cpus``) says so."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_MAX.read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # cgroup v1, no cgroup, or the quota is "max"
        return allowed
