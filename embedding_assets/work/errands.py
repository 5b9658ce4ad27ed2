"""Orders as they travel by a broker, each with the place in the store where its answer is looked for.

There a worker leaves the answer, written once, and a mark for each time that it began. A broker may lose, double or
delay a message, and a result backend would be one more thing to lose: the store that holds the parts holds the answers.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple

from pydantic import Field

from embedding_assets.snapshots.names import Name
from embedding_assets.snapshots.stores import Store
from embedding_assets.work.tasks import Order

FOLDER: Final = "answers"


class Errand(Order):
    """An order on its way; the answer goes to the store that its work writes to."""

    source: Name
    submission: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """What one call of a runner sends. Another call, of the same step too, looks for answers of its own."""
    number: Annotated[int, Field(ge=0, lt=10_000_000)]
    """Of the task among those of the submission."""

    @property
    def line(self) -> bytes:
        """The order alone, as a line of JSON."""
        return self.model_dump_json(include=set(Order.model_fields)).encode()

    @property
    def id(self) -> str:
        """The broker's name for it, the same however often it is sent."""
        return f"{self.submission}-{self.number}"

    @property
    def answer(self) -> str:
        """Path of the answer."""
        return f"{folder(self.source, self.submission)}/{self.number}.json"

    def begun(self, time: int) -> str:
        """Path of the mark that it began for the `time`-th time."""
        return f"{folder(self.source, self.submission)}/{self.number}-begun-{time}"


class Left(NamedTuple):
    """What lies in a submission's folder."""

    answered: set[int]
    """Numbers of the tasks that have an answer."""
    paths: list[str]


def folder(source: str, submission: str) -> str:
    """Where the answers of a submission lie."""
    return f"{FOLDER}/{source}/{submission}"


def left(store: Store, source: str, submission: str) -> Left:
    """What workers have left for a submission until now."""
    paths = [found.path for found in store.entries(folder(source, submission))]
    return Left(set(_numbers(paths)), paths)


def _numbers(paths: list[str]) -> Iterator[int]:
    for path in paths:
        if (named := re.fullmatch(r"(\d+)\.json", path.rpartition("/")[2])) is not None:
            yield int(named[1])
