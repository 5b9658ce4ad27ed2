"""Two machines bring one source up to date: each with its own home, on the same stores and databases."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.verification import verify
from embedding_assets.pgvector.loading import load
from embedding_assets.pgvector.locks import source_lock
from embedding_assets.snapshots.names import CHUNKS, REPLICA, TABLE, VECTORS
from embedding_assets_tests.support.harness import REGIONS, SOURCE, Sandbox

OLDER, NEWER = "Refunds take six days.", "Refunds take seven days."

Locked = Callable[..., AbstractContextManager[None]]


def once_before(lock: Locked, act: Callable[[], None], *partition: str) -> Locked:
    """The lock, with what another machine does while this one waits for it; of some partition's, or of any."""
    done: list[bool] = []

    @contextmanager
    def held(*arguments: Any, **named: Any) -> Iterator[None]:
        if not done and set(partition) <= set(arguments[1:]):
            done.append(True)
            act()
        with lock(*arguments, **named):
            yield

    return held


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    sandbox.write(refunds="Refunds take five days.", returns="Returns are free.")
    assert all(outcome.succeeded for outcome in sandbox.materialize())
    return sandbox


def while_another_brings_newer_documents(box: Sandbox) -> Callable[[], None]:
    def act() -> None:
        box.write(refunds=NEWER)
        another = replace(box.deployment, home=box.root / "another home")
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(Sandbox, "deployment", another)
            assert all(outcome.succeeded for outcome in box.materialize())

    return act


def assert_newest_is_served(box: Sandbox) -> None:
    for region in REGIONS:
        assert sorted(row[3] for row in box.rows(region)) == [NEWER, "Returns are free."]
    assert verify(box.deployment, [SOURCE], REGIONS) == []


@pytest.mark.parametrize(
    "asset", [CHUNKS, *(pytest.param(asset, marks=pytest.mark.slow) for asset in (VECTORS[0], REPLICA, TABLE))]
)
def test_a_run_that_waited_for_another_never_brings_back_what_it_read_before(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, asset: str
) -> None:
    """Its input was handed to it before it waited, and is no longer current when it has the lock."""
    act = while_another_brings_newer_documents(box)
    monkeypatch.setattr(Deployment, "sole_writer", once_before(Deployment.sole_writer, act, asset))
    box.write(refunds=OLDER)

    box.materialize()

    assert_newest_is_served(box)


def test_a_load_that_waited_for_another_in_the_database_begins_again_with_the_newest(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = while_another_brings_newer_documents(box)
    monkeypatch.setattr(load, "source_lock", once_before(source_lock, act))
    box.write(refunds=OLDER)

    outcomes = box.materialize()

    assert all(outcome.succeeded for outcome in outcomes)
    assert_newest_is_served(box)
