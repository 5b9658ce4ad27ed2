"""What every way of working on shards keeps to, and what every task has to be to reach another process."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from pydantic import TypeAdapter

from embedding_assets.chunking.options import Chunking
from embedding_assets.chunking.stage import ChunkTask, make_chunks
from embedding_assets.snapshots.derivation import Growth
from embedding_assets.snapshots.replication import CopyTask, copy_layer
from embedding_assets.snapshots.snapshot import Layer, Part
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets.telemetry.events import Event, TaskSettled, Tell, unheard
from embedding_assets.work.pool import in_process
from embedding_assets_tests.support.events import of_kind

LAYER = Layer(asset="raw_docs", shard=3, key="ab" * 32, rows=2, bytes=10, sha256="cd" * 32)
GROWTH = Growth(Part.alone(LAYER), (LAYER,), (LAYER,), (LAYER.key,))

TASKS = [
    (make_chunks, ChunkTask("docs", GROWTH, LAYER, Chunking(max_tokens=64, overlap=8))),
    (copy_layer, CopyTask("s3://bucket/prefix", "docs", LAYER)),
]


class Runner(Protocol):
    def __call__(self, work: Any, store: Store, tasks: Sequence[Any], tell: Tell = unheard) -> list[Any]: ...


@pytest.fixture(params=[in_process])
def run(request: pytest.FixtureRequest) -> Runner:
    runner: Runner = request.param
    return runner


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path.as_uri())


def double(store: Store, task: int) -> int:
    return 2 * task


@pytest.mark.parametrize("number", [0, 1, 2, 100])
def test_results_come_in_the_order_of_the_tasks_each_worked_on_once(run: Runner, store: Store, number: int) -> None:
    assert run(double, store, list(range(number))) == [2 * task for task in range(number)]


@pytest.mark.parametrize("number", [0, 1, 20])
def test_each_task_is_told_of_when_it_is_settled_in_the_callers_thread(run: Runner, store: Store, number: int) -> None:
    events: list[tuple[int, Event]] = []

    run(double, store, list(range(number)), lambda event: events.append((threading.get_ident(), event)))

    settled = of_kind([event for _, event in events], TaskSettled)
    assert [(one.task, one.settled, one.tasks) for one in settled] == [
        ("double", position + 1, number) for position in range(number)
    ]
    assert all(0 <= one.seconds < 5 for one in settled)
    assert {thread for thread, _ in events} <= {threading.get_ident()}


def test_the_work_is_done_on_the_store_that_was_given(run: Runner, store: Store) -> None:
    assert run(lambda store, task: store.url, store, [1, 2]) == [store.url, store.url]


def fail(store: Store, task: int) -> int:
    raise ValueError(f"task {task}")


def test_the_error_of_the_first_task_that_failed_is_raised(run: Runner, store: Store) -> None:
    with pytest.raises(ValueError, match="task 0"):
        run(fail, store, list(range(100)))


@pytest.mark.parametrize(("work", "task"), TASKS, ids=lambda given: getattr(given, "__name__", ""))
def test_work_is_a_function_of_a_module_and_a_task_is_the_same_after_its_way_as_json(work: Any, task: Any) -> None:
    adapter = TypeAdapter(type(task))

    assert adapter.validate_json(adapter.dump_json(task)) == task
    assert "<" not in work.__qualname__  # no closure: another process finds it by its name
