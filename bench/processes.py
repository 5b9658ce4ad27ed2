"""What a process and all that it has started take: CPU as time passes, and memory at most."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np

_EVERY_SECONDS: Final = 0.2
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Watch:
    """Takes down what a process and those that descend from it take, whenever it is told to look."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.peaks: dict[int, int] = {}
        """Bytes resident at most by process, which is the kernel's own figure."""
        self.together = 0
        """Bytes resident at one moment of all, at most; what they share is counted for each."""
        self._cpu: list[tuple[float, float]] = []

    def look(self) -> None:
        """Take down what there is now."""
        together, cpu = 0, 0.0
        for process in _family(self.root):
            with suppress(OSError, ValueError, KeyError):  # it has ended, or is about to and has no memory any more
                now, peak = _resident(process)
                together += now
                self.peaks[process] = max(self.peaks.get(process, 0), peak)
                cpu += _cpu_seconds(process)
        self.together = max(self.together, together)
        # One that ended between two looks is missing until its parent has waited for it.
        self._cpu.append((time.time(), max(cpu, self._cpu[-1][1] if self._cpu else 0.0)))

    def cpu_seconds(self, begin: float, end: float) -> float:
        """Between two moments of `time.time()`."""
        at, seconds = zip(*self._cpu, strict=True)
        return float(np.interp(end, at, seconds) - np.interp(begin, at, seconds))


@contextmanager
def watched(root: int) -> Iterator[Watch]:
    """Look at a process five times a second, for as long as this lasts."""
    watch, done = Watch(root), threading.Event()
    watch.look()

    def go_on() -> None:
        while not done.wait(_EVERY_SECONDS):
            watch.look()

    watcher = threading.Thread(target=go_on, daemon=True)
    watcher.start()
    try:
        yield watch
    finally:
        done.set()
        watcher.join()


def _family(root: int) -> list[int]:
    found = [root]
    for process in found:
        with suppress(OSError):
            for thread in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def _resident(process: int) -> tuple[int, int]:
    """Bytes, now and at most."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    now, peak = (int(lines[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM"))
    return now, peak


def _cpu_seconds(process: int) -> float:
    """The process's own and those of its children that it has seen end."""
    # The name, in brackets, may hold anything.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS
