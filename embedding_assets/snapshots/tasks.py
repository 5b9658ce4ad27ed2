"""Tasks: work on a source's data in a store, named so that any process that reaches the store can do it.

A task holds names, keys and options, never texts or vectors: those travel by the store. It survives JSON. What is done
for it is a function of a module, which takes the store and the task; `work/tasks.py` lists these functions.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from embedding_assets.snapshots.names import Name
from embedding_assets.snapshots.stores import Store


class Task(BaseModel):
    """What every task has. A field that a task does not know is refused: whoever sent it means something by it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Name

    @property
    def lock_seconds(self) -> float:
        """How long the work holds the interpreter's lock, about, so that threads would wait for each other."""
        return 0.0

    @property
    def stores(self) -> frozenset[str]:
        """URLs of the stores that the work uses besides the one that it is given."""
        return frozenset()


T = TypeVar("T", bound=Task)
R = TypeVar("R")


class Run(Protocol):
    """A runner: how tasks are worked on, in this process or by others."""

    def __call__(self, work: Callable[[Store, T], R], store: Store, tasks: Sequence[T]) -> list[R]:
        """Call `work` for each task, in any order; the results in the order of the tasks.

        Doing a task twice, or in two places at once, does no harm: the first who writes a part wins.
        """
