"""Working on the shards of a source side by side, on this machine."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final, TypeVar

from embedding_assets.machine import cores
from embedding_assets.snapshots.stores import Store
from embedding_assets.snapshots.tasks import Task
from embedding_assets.telemetry.events import TaskSettled, Tell, unheard
from embedding_assets.work.processes import Workers

T = TypeVar("T", bound=Task)
R = TypeVar("R")

_WORTH_SECONDS: Final = 4.0
"""Of work that holds the interpreter's lock. A process takes .7 s of a core before it cuts its first text, a thread
.1 s, and 137 MB."""

_MOST_PROCESSES: Final = 8
"""Each has up to a shard in memory besides its 137 MB."""


def local(work: Callable[[Store, T], R], store: Store, tasks: Sequence[T], tell: Tell = unheard) -> list[R]:
    """Do `work` for each task, by processes where they are worth it; else by threads. As both."""
    run = in_processes if worth_processes(tasks) else in_threads
    return run(work, store, tasks, tell)


def worth_processes(tasks: Sequence[Task]) -> bool:
    """Whether threads would wait for each other for longer than processes take to start."""
    return len(tasks) > 1 and cores() > 1 and sum(task.lock_seconds for task in tasks) >= _WORTH_SECONDS


def in_threads(work: Callable[[Store, T], R], store: Store, tasks: Sequence[T], tell: Tell = unheard) -> list[R]:
    """Do `work` for each task, at most as many at once as there are cores; the results in the order of the tasks.

    Arrow, hashing and I/O let go of the interpreter's lock; the tokenizer does not. The first error is raised once the
    tasks under way have ended; tasks that had not begun are left. `tell` is called in the caller's thread, in the order
    of the tasks.
    """

    def timed(task: T) -> tuple[R, float]:
        began = time.monotonic()
        result = work(store, task)
        return result, time.monotonic() - began

    return _side_by_side(timed, tasks, cores(), work.__name__, tell, lambda: None)


def in_processes(work: Callable[[Store, T], R], store: Store, tasks: Sequence[T], tell: Tell = unheard) -> list[R]:
    """As `in_threads`, in processes of their own: to these `work` goes by its name, and a task as JSON.

    An interruption, such as Ctrl-C, ends them at once.

    Raises:
        WorkerLost: the processes that had a task died, each of them.
    """
    number = min(len(tasks), cores(), _MOST_PROCESSES)
    with closing(Workers(number)) as workers:
        return _side_by_side(
            lambda task: workers.do(work, store, task), tasks, number, work.__name__, tell, workers.close
        )


def _side_by_side(
    do: Callable[[T], tuple[R, float]],
    tasks: Sequence[T],
    most: int,
    name: str,
    tell: Tell,
    interrupt: Callable[[], None],
) -> list[R]:
    """The results of `do`, by as many threads at most; `interrupt` ends what is under way."""
    results: list[R] = []
    if not tasks:
        return results
    with ThreadPoolExecutor(max_workers=min(len(tasks), most)) as threads:
        futures = [threads.submit(do, task) for task in tasks]
        try:
            for future in futures:
                result, seconds = future.result()
                results.append(result)
                tell(TaskSettled(name, seconds, len(results), len(tasks)))
        except BaseException as error:
            for future in futures:
                future.cancel()
            if not isinstance(error, Exception):
                interrupt()
            raise
    return results
