"""Working on the shards of a source side by side, in this process."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from embedding_assets.snapshots.stores import Store

T = TypeVar("T")
R = TypeVar("R")


def in_process(work: Callable[[Store, T], R], store: Store, tasks: Sequence[T]) -> list[R]:
    """Do `work` for each task, at most as many at once as there are cores; the results in the order of the tasks.

    Threads: the work is Arrow, the tokenizer, hashing and I/O, which let go of the interpreter. The first error is
    raised once the tasks under way have ended; tasks that had not begun are left.
    """
    if len(tasks) <= 1:
        return [work(store, task) for task in tasks]
    with ThreadPoolExecutor(max_workers=min(len(tasks), os.cpu_count() or 1)) as pool:
        futures = [pool.submit(work, store, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
