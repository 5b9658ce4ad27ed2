"""What this process may use of its machine: a container, a service or an affinity may leave it less than there is."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def cores() -> int:
    """Cores that this process may use at once, at least 1; a part of one counts as one."""
    # macOS has no affinity.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (limit.split() for limit in _limits(_GROUPS, _OWN, "cpu.max"))
    shares = (math.ceil(int(microseconds) / int(period)) for microseconds, period in quotas if microseconds != "max")
    return max(1, min(allowed, *shares, allowed))


def memory() -> int:
    """Bytes of memory that this process may use."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sizes = (int(limit) for limit in _limits(_GROUPS, _OWN, "memory.max") if limit != "max")
    return min(machine, *sizes, machine)


def _limits(groups: Path, own: Path, name: str) -> Iterator[str]:
    """What the file says of this process's control group, and of each above it; nothing where there is none of version
    2. In a container the group that is seen as the uppermost is the container's."""
    for folder in _lineage(groups, own):
        try:
            limit = (folder / name).read_text("ascii").strip()
        except OSError:  # the uppermost of a machine has no limit
            continue
        if limit:
            yield limit


def _lineage(groups: Path, own: Path) -> Iterator[Path]:
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return
    for path in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        yield from (folder for folder in (groups / path, *(groups / path).parents) if folder.is_relative_to(groups))
