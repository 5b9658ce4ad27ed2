"""A sink for tests: a list, and what of one kind is in it."""

from collections.abc import Iterable
from typing import TypeVar

from embedding_assets.telemetry.events import Event

E = TypeVar("E")


def of_kind(events: Iterable[Event], kind: type[E]) -> list[E]:
    """The events of this class, in the order in which they were told."""
    return [event for event in events if isinstance(event, kind)]
