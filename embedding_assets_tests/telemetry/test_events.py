"""The events: frozen, told by the code that they are about, and without anything that may not leave the process."""

import ast
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

import embedding_assets
from embedding_assets.telemetry import events
from embedding_assets.telemetry.events import Event, LoadProgress

EVENTS: tuple[type[Any], ...] = get_args(Event)
PACKAGE = Path(embedding_assets.__file__).parent


def test_every_event_of_the_module_can_be_told() -> None:
    assert {found for found in vars(events).values() if is_dataclass(found) and found in EVENTS} == set(EVENTS)
    assert [name for name, found in vars(events).items() if is_dataclass(found) and found not in EVENTS] == []


def test_every_event_is_made_by_the_code_that_it_is_about() -> None:
    """An event that nobody makes would be a metric that stays at nothing."""
    made = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                made.add(node.func.id)

    assert {event.__name__ for event in EVENTS} - made == set()


def test_an_event_does_not_change() -> None:
    event = LoadProgress(1, 2, 10, 20, 10, 1000)

    with pytest.raises(FrozenInstanceError):
        event.rows = 20  # type: ignore[misc]


@pytest.mark.parametrize("event", EVENTS)
def test_no_event_names_a_document_or_has_its_text(event: type[Any]) -> None:
    assert {field.name for field in fields(event)} & {"document_id", "text", "text_hash", "chunk_id", "reason"} == set()
