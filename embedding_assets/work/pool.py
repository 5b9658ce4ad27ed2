"""Working on the shards of a source side by side, in this process."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from embedding_assets.snapshots.stores import Store
from embedding_assets.telemetry.events import TaskSettled, Tell, unheard

T = TypeVar("T")
R = TypeVar("R")


def in_process(work: Callable[[Store, T], R], store: Store, tasks: Sequence[T], tell: Tell = unheard) -> list[R]:
    """Do `work` for each task, at most as many at once as there are cores; the results in the order of the tasks.

    Threads: Arrow, hashing and I/O let go of the interpreter. The tokenizer does not, so that cutting takes as long by
    two threads as by one; two processes would take .55. The first error is raised once the tasks under way have ended;
    tasks that had not begun are left. `tell` is called in the caller's thread, in the order of the tasks.
    """

    def timed(task: T) -> tuple[R, float]:
        began = time.monotonic()
        result = work(store, task)
        return result, time.monotonic() - began

    def collected(done: Iterable[tuple[R, float]]) -> list[R]:
        results: list[R] = []
        for result, seconds in done:
            results.append(result)
            tell(TaskSettled(work.__name__, seconds, len(results), len(tasks)))
        return results

    if len(tasks) <= 1:
        return collected(map(timed, tasks))
    with ThreadPoolExecutor(max_workers=min(len(tasks), os.cpu_count() or 1)) as pool:
        futures = [pool.submit(timed, task) for task in tasks]
        try:
            return collected(future.result() for future in futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
