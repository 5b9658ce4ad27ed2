"""Worker processes of this machine: each a Python of its own, without this one's threads, locks and Dagster."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final

from embedding_assets.snapshots.stores import Store
from embedding_assets.snapshots.tasks import Task
from embedding_assets.work.failures import WorkerLost
from embedding_assets.work.tasks import Work, order, result_of

_TRIES: Final = 2
"""Of a task whose worker dies. One may have met a memory that was short for a moment."""


class Workers:
    """So many workers, started as they are needed. `do` may be called by as many threads."""

    def __init__(self, number: int) -> None:
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False
        for _ in range(number):
            self._idle.put(None)

    def do(self, work: Work, store: Store, task: Task) -> tuple[Any, float]:
        """The result of the work, and the seconds that it took.

        Raises:
            WorkerLost: see there.
            PermanentError, TransientError: as the work.
        """
        line = order(work, store, task) + b"\n"
        worker = self._idle.get()
        code = 0
        try:
            for _ in range(_TRIES):
                worker = worker or self._started()
                answer = _asked(worker, line)
                if answer:
                    return result_of(work, answer)
                code = self._ended(worker)
                worker = None
                if self._closed:
                    break
        finally:
            self._idle.put(worker)
        died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        raise WorkerLost(
            f"source {task.source}: the process that did {work.__name__} was {died}, {_TRIES} times. Cure: if the "
            "machine is short of memory, give it more or run fewer sources at once; and run again."
        )

    def close(self) -> None:
        """End the workers, whatever they do: who waits for one of them waits no longer."""
        self._closed = True
        for worker in list(self._running):
            worker.kill()
        for worker in list(self._running):
            self._ended(worker)

    def _started(self) -> subprocess.Popen[bytes]:
        # Its own group: Ctrl-C at a terminal is this process's to hear, which ends its workers. As multiprocessing's
        # spawn does, it gets the paths that modules are looked for in; and -P, no others.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "embedding_assets.work.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0,
        )
        self._running.add(worker)
        if self._closed:
            worker.kill()
        return worker

    def _ended(self, worker: subprocess.Popen[bytes]) -> int:
        """Its exit code, now that it ends."""
        _close(worker)
        worker.kill()  # one that has closed its output may live on
        code = worker.wait()
        self._running.discard(worker)
        return code


def _asked(worker: subprocess.Popen[bytes], line: bytes) -> bytes:
    """A worker's answer; empty where it died instead."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(line)
        worker.stdin.flush()
        answer = worker.stdout.readline()
    except (OSError, ValueError):  # a broken pipe; or one that was closed meanwhile
        return b""
    return answer if answer.endswith(b"\n") else b""


def _close(worker: subprocess.Popen[bytes]) -> None:
    """Let it see the end of its input."""
    assert worker.stdin is not None
    with suppress(OSError):  # what was not sent to one that died
        worker.stdin.close()
