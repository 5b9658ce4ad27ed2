"""A runner for tests of what tasks do."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from embedding_assets.snapshots.stores import Store
from embedding_assets.snapshots.tasks import Task

T = TypeVar("T", bound=Task)
R = TypeVar("R")


def one_by_one(work: Callable[[Store, T], R], store: Store, tasks: Sequence[T]) -> list[R]:
    """In a fixed order, so that what fails fails again."""
    return [work(store, task) for task in tasks]
