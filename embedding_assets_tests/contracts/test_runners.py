"""What every way of working on shards keeps to, and what every task has to be to reach another process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pyarrow as pa
import pytest

from embedding_assets.chunking.options import Chunking
from embedding_assets.chunking.stage import ChunkTask, prepare_chunks
from embedding_assets.embedding.engine.engine import Budget
from embedding_assets.embedding.ledger import Account
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.task import Bought, EmbedTask, embed_shards
from embedding_assets.errors import PermanentError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.derivation import Growth
from embedding_assets.snapshots.failpoints import VARIABLE, Failpoint
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import LayerDamaged, write_layer
from embedding_assets.snapshots.replication import CopyTask, copy_layer
from embedding_assets.snapshots.snapshot import Layer, Part
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets.snapshots.tasks import Task
from embedding_assets.sources.options import FilesOptions
from embedding_assets.sources.reader import open_reader
from embedding_assets.sources.stage import prepare_source
from embedding_assets.telemetry.events import Event, TaskSettled
from embedding_assets.work import pool
from embedding_assets.work.failures import WorkerLost
from embedding_assets.work.pool import in_processes, in_threads, worth_processes
from embedding_assets.work.processes import Workers
from embedding_assets.work.tasks import MODULES, Work, order, understood, work_of
from embedding_assets_tests.support.brokers import Site
from embedding_assets_tests.support.events import of_kind
from embedding_assets_tests.support.runners import R, T, one_by_one

SOURCE = "docs"
LAYER = Layer(asset="raw_docs", shard=3, key="ab" * 32, rows=2, bytes=3_000_000, sha256="cd" * 32)


class Copies(NamedTuple):
    """Two stores, and tasks that copy layers of different sizes from one to the other."""

    region: Store
    tasks: list[CopyTask]

    @property
    def sizes(self) -> list[int]:
        return [task.layer.bytes for task in self.tasks]


def copies_between(primary: Store, region: Store, source: str = SOURCE) -> Copies:
    layers = [
        write_layer(
            primary,
            pa.table({"name": pa.array([str(row) for row in range(10 * number)])}),
            asset="chunks",
            source=source,
            shard=number,
            key=part_key("chunks", "1", [str(number)]),
            compression="none",
        )
        for number in range(8)
    ]
    return Copies(region, [CopyTask(source=source, primary=primary.url, layer=layer) for layer in layers])


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return copies_between(open_store((tmp_path / "primary").as_uri()), open_store((tmp_path / "region").as_uri()))


class Given(NamedTuple):
    """A runner, and what it is to do."""

    run: Any
    copies: Copies


@pytest.fixture(params=["threads", "processes", "RabbitMQ", "Redis"])
def given(request: pytest.FixtureRequest) -> Given:
    """Each runner; its workers are the same for all tests."""
    match request.param:
        case "threads" | "processes":
            run = in_threads if request.param == "threads" else in_processes
            return Given(run, request.getfixturevalue("copies"))
        case broker:
            site: Site = request.getfixturevalue(f"at_{broker.lower()}")
            site.empty()
            primary, region = map(open_store, site.stores.values())
            return Given(site.runner(), copies_between(primary, region))


@pytest.mark.parametrize("number", [0, 1, 8])
def test_each_task_is_done_once_and_told_of_in_its_order_in_the_callers_thread(number: int, given: Given) -> None:
    run, copies = given
    events: list[tuple[int, Event]] = []
    tell = lambda event: events.append((threading.get_ident(), event))  # noqa: E731

    results = run(copy_layer, copies.region, copies.tasks[:number], tell)

    assert results == copies.sizes[:number]  # a copy that is there already would count no byte
    settled = of_kind([event for _, event in events], TaskSettled)
    assert [(one.task, one.settled, one.tasks) for one in settled] == [
        ("copy_layer", position + 1, number) for position in range(number)
    ]
    assert all(0 <= one.seconds < 5 for one in settled)
    assert {thread for thread, _ in events} <= {threading.get_ident()}


def test_nothing_but_the_work_is_left_in_the_store(given: Given) -> None:
    primary = open_store(given.copies.tasks[0].primary)
    alone = copies_between(primary, given.copies.region, "alone")  # no late worker of another test has this source

    given.run(copy_layer, alone.region, alone.tasks)

    found = {entry.path for entry in alone.region.entries("") if "/alone/" in entry.path}
    assert found == {task.layer.path("alone") for task in alone.tasks}


def test_the_error_of_the_first_task_that_failed_is_raised_with_all_that_healing_needs(given: Given) -> None:
    run, copies = given
    primary = open_store(copies.tasks[0].primary)
    lost = copies.tasks[2].layer
    primary.delete([task.layer.path(SOURCE) for task in copies.tasks[2:]])

    with pytest.raises(LayerDamaged) as raised:
        run(copy_layer, copies.region, copies.tasks)

    assert str(raised.value) == str(LayerDamaged(primary, SOURCE, lost, raised.value.words))
    assert (raised.value.store.url, raised.value.source, raised.value.layer) == (primary.url, SOURCE, lost)


def test_what_a_killed_worker_was_at_is_done_again(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cores", lambda: 1)
    monkeypatch.setenv(VARIABLE, f"{Failpoint.BEFORE_COPY}:2")  # of each process

    assert in_processes(copy_layer, copies.region, copies.tasks[:2]) == copies.sizes[:2]


def test_a_task_that_kills_each_worker_is_named_with_a_cure(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, Failpoint.BEFORE_COPY)

    with pytest.raises(WorkerLost, match=r"source docs: .* copy_layer was killed by SIGKILL, 2 times\. Cure: .*memory"):
        in_processes(copy_layer, copies.region, copies.tasks[:1])


STEP = """
import sys
from embedding_assets.snapshots.replication import CopyTask, copy_layer
from embedding_assets.snapshots.stores import open_store
from embedding_assets.work.pool import in_processes

tasks = [CopyTask.model_validate_json(line) for line in sys.argv[2:]]
in_processes(copy_layer, open_store(sys.argv[1]), tasks)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: signal.Signals(number).name)
def test_workers_end_at_once_with_the_step_that_is_interrupted_or_killed(number: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        host, port = silent.getsockname()
        environment = os.environ | {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
        }
        task = CopyTask(source=SOURCE, primary="s3://bucket/prefix", layer=LAYER)
        command = [sys.executable, "-c", STEP, tmp_path.as_uri(), task.model_dump_json()]
        step = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        with silent.accept()[0] as worker:  # it waits for an answer that does not come
            worker.settimeout(30)
            step.send_signal(number)

            assert step.wait(timeout=30) != 0
            assert until_closed(worker)
        assert step.stderr is not None
        step.stderr.close()


def until_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    return True


# Tasks, and their way to another process


class Done(NamedTuple):
    """Work that was done in this process."""

    work: Work
    task: Task
    made: Any


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def store(top: Path) -> Store:
    return open_store((top / "store").as_uri())


@pytest.fixture(scope="module")
def done(top: Path, store: Store) -> dict[str, Done]:
    """One piece of work of each name, as the stages of a small source ask for it: what it is, and what it came to."""
    (top / "docs").mkdir()
    for number in range(5):
        (top / "docs" / f"{number}.txt").write_text(f"Document {number} says: {'word ' * 40 * number}.\n")
    done: dict[str, Done] = {}

    def recorded(work: Callable[[Store, T], R], store: Store, tasks: Sequence[T]) -> list[R]:
        results = one_by_one(work, store, tasks)
        done[work.__name__] = Done(work, tasks[0], results[0])
        return results

    reader = open_reader(SOURCE, FilesOptions(kind="files", path=top / "docs"))
    draft, _ = prepare_source(
        store, SOURCE, reader, top / "catalog.sqlite", recorded, max_deleted=0, allow_deletes=False
    )
    raw_docs = log.append(store, draft)
    chunks = log.append(store, prepare_chunks(store, raw_docs, Chunking(max_tokens=32, overlap=4), recorded))
    binding = Binding.model_validate({"slot": "v1", "provider": "local", "name": "wordllama-64", "dimensions": 64})
    (part,) = chunks.parts
    embed = EmbedTask(
        source=SOURCE,
        binding=binding,
        identity=binding.identity(),
        shards=(Growth(of=part, made_of=part.layers),),
        dead=(),
        kept=(),
        before=(),
        renamed_from=None,
        left=(),
        journals=top / "journals",
        budget=Budget(max_tokens=1_000_000, account=Account(top / "runs.sqlite", "run", store)),
    )
    recorded(embed_shards, store, [embed])
    (layer,) = part.layers
    recorded(copy_layer, store, [CopyTask(source=SOURCE, primary=store.url, layer=layer)])
    return done


@pytest.fixture(scope="module")
def another_process() -> Iterator[Workers]:
    with closing(Workers(1)) as workers:
        yield workers


@pytest.mark.parametrize("name", MODULES)
def test_a_task_that_comes_as_json_makes_the_same_part_in_another_process(
    name: str, done: dict[str, Done], store: Store, top: Path, another_process: Workers
) -> None:
    work, task, made = done[name]
    if isinstance(task, EmbedTask):  # another machine, without what was bought here
        task = task.model_copy(update={"journals": top / "other journals"})
    layers = [layer for part in parts_of(made) for layer in part.layers]
    store.delete([layer.path(SOURCE) for layer in layers])

    again, _ = another_process.do(work, store, task)

    assert parts_of(again) == parts_of(made)
    assert type(again) is type(made)
    assert all(store.get(layer.path(SOURCE)) for layer in layers)


def parts_of(made: Any) -> tuple[Part, ...]:
    match made:
        case Part():
            return (made,)
        case Bought():
            return made.parts
        case _:
            return ()


@pytest.mark.parametrize("name", MODULES)
def test_a_task_is_the_same_after_its_way_as_json_and_has_no_text(
    name: str, done: dict[str, Done], store: Store
) -> None:
    work, task, _ = done[name]

    line = order(work, store, task)

    assert understood(line)[::2] == (work, task)
    assert b"word word" not in line


def test_every_class_of_tasks_has_its_work() -> None:
    assert {get_type_hints(work)["task"] for work in map(work_of, MODULES)} == set(Task.__subclasses__())


def changed(sent: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return sent | {"task": sent["task"] | fields}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda sent: sent | {"work": "os.system"}, "no work is named 'os.system', there are make_documents"),
        (lambda sent: sent | {"priority": 3}, "not an order for work: 'priority': Extra inputs"),
        (lambda sent: sent | {"task": {}}, "not a task for copy_layer: 'source': Field required"),
        (partial(changed, more=1), "not a task for copy_layer: 'more': Extra inputs"),
        (partial(changed, source="../../etc"), "not a task for copy_layer: 'source': String should match"),
        (
            partial(changed, layer=LAYER.model_dump() | {"asset": "../x"}),
            "not a task for copy_layer: 'layer.asset': String should match",
        ),
        (
            partial(changed, layer=LAYER.model_dump() | {"key": "../x"}),
            "not a task for copy_layer: 'layer.key': String should match",
        ),
        (lambda sent: "not an order", "not an order for work: "),
    ],
)
def test_what_is_not_understood_is_refused_before_anything_is_done(
    change: Callable[[dict[str, Any]], Any], why: str, copies: Copies
) -> None:
    sent = json.loads(order(copy_layer, copies.region, copies.tasks[0]))

    with pytest.raises(PermanentError, match=f"{re.escape(why)}.* Cure: run workers of the same version"):
        understood(json.dumps(change(sent)).encode())

    assert list(copies.region.entries("parts")) == []


def test_processes_are_started_for_work_that_keeps_the_interpreters_lock_longer_than_their_start_takes() -> None:
    def cutting(size: int) -> ChunkTask:
        layer = LAYER.model_copy(update={"bytes": size})
        grows = Growth(of=Part.alone(layer), made_of=(layer,))
        return ChunkTask(source=SOURCE, grows=grows, left=None, chunking=Chunking())

    assert worth_processes([cutting(3_000_000)] * 2)
    assert not worth_processes([cutting(6_000_000)])  # a task is one process's
    assert not worth_processes([cutting(30_000)] * 50)
    assert not worth_processes([CopyTask(source=SOURCE, primary="s3://bucket", layer=LAYER)] * 1000)
