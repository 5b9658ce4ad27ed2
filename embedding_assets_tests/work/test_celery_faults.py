"""Workers that are killed, a broker that goes away, steps that are killed: nothing is lost, nothing hangs."""

import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kombu import Connection, Producer

from embedding_assets.chunking.stage import make_chunks
from embedding_assets.snapshots.failpoints import VARIABLE, Failpoint
from embedding_assets.snapshots.replication import copy_layer
from embedding_assets.snapshots.snapshot import Part
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets.snapshots.tasks import Task
from embedding_assets.work import errands
from embedding_assets.work.celery import NAME, TRIES, application
from embedding_assets.work.celery_runner import WorkersSilent
from embedding_assets.work.failures import WorkerLost
from embedding_assets.work.pool import in_threads
from embedding_assets.work.tasks import Work
from embedding_assets_tests.support.brokers import Program, Site, until
from embedding_assets_tests.support.tasks import SOURCE, chunk_tasks, copy_tasks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rabbitmq")]

KINDS = pytest.mark.parametrize("kind", ["make_chunks", "copy_layer"])


class Job(NamedTuple):
    """Work of one kind, with what it comes to."""

    work: Work
    store: Store
    tasks: Sequence[Task]
    expected: list[Any]
    region: str
    """Whose store it writes to."""


def job(site: Site, kind: str, number: int, words: int = 10) -> Job:
    primary, region = open_store(site.stores["here"]), open_store(site.stores["there"])
    if kind == "copy_layer":
        tasks = copy_tasks(primary, number)
        return Job(copy_layer, region, tasks, [task.layer.bytes for task in tasks], "there")
    cut = chunk_tasks(primary, number, words)
    aside = open_store((site.folder / "aside").as_uri())
    expected = in_threads(make_chunks, aside, chunk_tasks(aside, number, words))
    return Job(make_chunks, primary, cut, expected, "here")


def layers_of(result: Any, task: Any) -> set[str]:
    return {layer.path(SOURCE) for layer in (result.layers if isinstance(result, Part) else [task.layer])}


def done_once(job: Job, results: list[Any]) -> bool:
    """Whether everything is in the store, as it is when threads do it, and no answer is left."""
    paths = set().union(*map(layers_of, results, job.tasks))
    found = {entry.path for entry in job.store.entries("")}
    kept = (results == job.expected) if job.work is make_chunks else len(results) == len(job.expected)
    return kept and paths <= found and all(path.startswith("parts/") for path in found)


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


def begun(store: Store) -> int:
    return sum("begun" in entry.path for entry in store.entries(errands.FOLDER))


@KINDS
def test_what_a_killed_child_of_a_worker_was_at_is_done_again(kind: str, site: Site) -> None:
    given = job(site, kind, 4)
    point = Failpoint.BEFORE_COPY if kind == "copy_layer" else Failpoint.BEFORE_PART
    site.worker("-c", "1", **{VARIABLE: f"{point}:2"})  # of each child

    results = site.runner(given.region)(given.work, given.store, given.tasks)

    assert done_once(given, results)
    assert site.broker.dead() == 0


@KINDS
def test_what_a_killed_worker_was_at_is_done_by_another(kind: str, site: Site, thread: ThreadPoolExecutor) -> None:
    given = job(site, kind, 24, words=4_000)
    first = site.worker("-c", "2")

    step = thread.submit(site.runner(given.region), given.work, given.store, given.tasks)
    until(lambda: begun(given.store))
    first.kill()
    site.worker("-c", "2")

    assert done_once(given, step.result(120))


def test_a_task_that_kills_its_worker_each_time_is_a_dead_message_and_the_others_go_on(site: Site) -> None:
    poison, others = job(site, "copy_layer", 1), job(site, "make_chunks", 4)
    bad = site.worker("-c", "1", **{VARIABLE: Failpoint.BEFORE_COPY})

    with pytest.raises(
        WorkerLost, match=rf"each worker that began copy_layer was lost, {TRIES} times\. Cure: .*memory"
    ):
        site.runner(poison.region)(poison.work, poison.store, poison.tasks)

    until(lambda: site.broker.dead() == 1)
    assert done_once(others, site.runner(others.region)(others.work, others.store, others.tasks))
    assert bad.runs


def test_a_broker_that_is_stopped_in_the_middle_and_started_again_loses_nothing(
    site: Site, thread: ThreadPoolExecutor
) -> None:
    given = job(site, "make_chunks", 24, words=4_000)
    site.worker("-c", "2")

    step = thread.submit(site.runner(given.region), given.work, given.store, given.tasks)
    until(lambda: begun(given.store) > 2)
    site.broker.stop()
    site.broker.start()

    assert done_once(given, step.result(120))


def test_messages_that_the_broker_lost_are_sent_again(site: Site, thread: ThreadPoolExecutor) -> None:
    given = job(site, "copy_layer", 4)

    step = thread.submit(site.runner(given.region, overdue_seconds=2), given.work, given.store, given.tasks)
    until(lambda: site.broker.waiting("load.there") == 4)
    site.forget_messages()
    site.worker("-c", "2")

    assert done_once(given, step.result(120))


def test_a_step_without_a_worker_gives_up_in_bounded_time_and_says_why(site: Site) -> None:
    given = job(site, "copy_layer", 2)

    with pytest.raises(WorkersSilent, match=r"2 of 2 copy_layer are not done, .*workers on queue load\.there"):
        site.runner(given.region, patience_seconds=2, overdue_seconds=1)(given.work, given.store, given.tasks)

    assert {entry.path for entry in given.store.entries("")} == set()


STEP = """
import sys
from embedding_assets.chunking.stage import ChunkTask, make_chunks
from embedding_assets.snapshots.stores import open_store
from embedding_assets.work.celery_runner import Workers
from embedding_assets.work.options import WorkOptions

options, here, tasks = sys.argv[1:]
workers = Workers(WorkOptions.model_validate_json(options), {"here": here, "there": here}, "here")
with open(tasks) as lines:
    workers(make_chunks, open_store(here), [ChunkTask.model_validate_json(line) for line in lines])
"""


def step_process(site: Site, given: Job) -> Program:
    """The step in a process of its own."""
    lines = site.folder / "tasks.jsonl"
    lines.write_text("".join(task.model_dump_json() + "\n" for task in given.tasks))
    options = site.runner().options.model_dump_json()
    command: list[str | Path] = [sys.executable, "-c", STEP, options, site.stores["here"], lines]
    return Program(command, site.folder / "step.log", site.environment)


def test_a_step_that_is_killed_is_done_by_running_it_again(site: Site) -> None:
    given = job(site, "make_chunks", 24, words=4_000)
    site.worker("-c", "2")

    step = step_process(site, given)
    until(lambda: begun(given.store) > 2)
    step.kill()
    results = site.runner(given.region)(given.work, given.store, given.tasks)

    assert results == given.expected
    assert site.broker.dead() == 0


def test_a_step_that_is_stopped_revokes_what_is_not_begun(site: Site) -> None:
    given = job(site, "make_chunks", 60, words=4_000)
    worker = site.worker("-c", "1")

    step = step_process(site, given)
    until(lambda: begun(given.store) > 2)
    assert step.end(signal.SIGINT) != 0
    until(lambda: not site.broker.waiting("cpu"))
    worker.end()

    made = sum(entry.path.startswith("parts/chunks/") for entry in given.store.entries("parts"))
    assert made < len(given.tasks) / 2


def test_what_is_not_understood_is_a_dead_message_and_never_run(site: Site, tmp_path: Path) -> None:
    worker = site.worker("-c", "1")
    until(lambda: " ready." in worker.said())
    app = application(site.broker.url, site.stores)
    app.send_task("os.system", [f"touch {tmp_path / 'run'}"], queue="cpu")
    app.send_task(NAME, [{"work": "os.system"}], queue="cpu")
    app.send_task(NAME, [], {"unknown": 1}, queue="cpu")
    until(lambda: site.broker.dead() == 3)

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    with Connection(site.broker.url) as connection:
        body = pickle.dumps(([Evil()], {}, {}))
        headers = {"task": NAME, "id": "1", "lang": "py"}
        Producer(connection).publish(
            body,
            routing_key="cpu",
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers=headers,
        )
    until(lambda: "Refusing to deserialize" in worker.said())

    assert not (tmp_path / "run").exists()
    assert worker.runs


def test_a_worker_that_is_asked_to_end_ends_what_it_is_at_first(site: Site, thread: ThreadPoolExecutor) -> None:
    given = job(site, "make_chunks", 30, words=4_000)
    first = site.worker("-c", "1")

    step = thread.submit(site.runner(given.region), given.work, given.store, given.tasks)
    until(lambda: begun(given.store) > 2)
    assert first.end() == 0
    again = [entry.path for entry in given.store.entries(errands.FOLDER) if entry.path.endswith("begun-2")]
    site.worker("-c", "2")

    assert done_once(given, step.result(120))
    assert again == []


def test_one_step_is_done_by_four_workers_together(site: Site) -> None:
    given = job(site, "make_chunks", 60, words=2_000)
    workers = [site.worker("-c", "1") for _ in range(4)]
    for worker in workers:
        until(lambda worker=worker: " ready." in worker.said())  # type: ignore[misc]

    assert done_once(given, site.runner(given.region)(given.work, given.store, given.tasks))

    ended = [worker.said().count(" succeeded in ") for worker in workers]
    assert sum(ended) == 60
    assert min(ended) >= 5
