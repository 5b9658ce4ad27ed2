"""What a worker does with a message, and a step without anybody who does its tasks; no broker is needed."""

import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from celery.exceptions import Reject

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.replication import CopyTask, copy_layer
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets.work.celery import TRIES, do
from embedding_assets.work.celery_runner import Workers, WorkersSilent
from embedding_assets.work.errands import Errand
from embedding_assets.work.failures import WorkerLost
from embedding_assets.work.options import WorkOptions
from embedding_assets.work.tasks import ordered, result_of
from embedding_assets_tests.support.tasks import SOURCE, copy_tasks


class Asked(NamedTuple):
    """A copy to be made, as a message brings it to a worker that has these stores."""

    stores: frozenset[str]
    region: Store
    task: CopyTask
    errand: Errand

    @property
    def message(self) -> dict[str, Any]:
        return self.errand.model_dump(mode="json")


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    primary, region = open_store((tmp_path / "primary").as_uri()), open_store((tmp_path / "region").as_uri())
    (task,) = copy_tasks(primary, 1)
    order = ordered(copy_layer, region, task).model_dump()
    errand = Errand(source=SOURCE, submission=uuid.uuid4().hex, number=0, **order)
    return Asked(frozenset({primary.url, region.url}), region, task, errand)


def paths(store: Store) -> set[str]:
    return {entry.path for entry in store.entries("")}


def test_a_task_that_comes_twice_is_done_once(asked: Asked) -> None:
    do(asked.stores, asked.message)
    first = asked.region.get(asked.errand.answer)
    do(asked.stores, asked.message)

    assert first is not None
    assert result_of(copy_layer, first)[0] == asked.task.layer.bytes
    assert asked.region.get(asked.errand.answer) == first
    assert paths(asked.region) == {asked.task.layer.path(SOURCE), asked.errand.answer, asked.errand.begun(1)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda message: {**message, "more": 1}, "'more': Extra inputs"),
        (lambda message: {**message, "submission": "../../x"}, "'submission': String should match"),
        (lambda message: {**message, "number": -1}, "'number': Input should be greater"),
        (lambda message: {**message, "source": "../x"}, "'source': String should match"),
        (lambda message: {**message, "store": "file:///etc"}, "a store that is none of EMBEDDING_ASSETS_STORES"),
        (lambda message: "text", "no errand"),
        (lambda message: None, "no errand"),
    ],
)
def test_a_message_that_is_no_errand_is_rejected_and_writes_nothing(
    change: Callable[[dict[str, Any]], Any], why: str, asked: Asked
) -> None:
    with pytest.raises(Reject, match=why) as rejected:
        do(asked.stores, change(asked.message))

    assert rejected.value.args[1] is False  # not to be delivered again
    assert paths(asked.region) == set()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda message: {**message, "work": "os.system"}, "no work is named 'os.system'"),
        (lambda message: {**message, "work": "make_documents"}, "make_documents"),  # needs files of a machine
        (lambda message: {**message, "task": {}}, "not a task for copy_layer: 'source': Field required"),
        (
            lambda message: {**message, "task": {**message["task"], "primary": "s3://of-another"}},
            "a task names a store that its worker does not have",
        ),
    ],
)
def test_an_order_that_is_not_for_this_worker_is_rejected_and_its_sender_told(
    change: Callable[[dict[str, Any]], Any], why: str, asked: Asked
) -> None:
    with pytest.raises(Reject, match=why):
        do(asked.stores, change(asked.message))

    answer = asked.region.get(asked.errand.answer)
    assert answer is not None
    with pytest.raises(PermanentError, match=f"{why}.*Cure: "):
        result_of(copy_layer, answer)
    assert paths(asked.region) == {asked.errand.answer}


def test_a_task_that_began_often_and_never_ended_is_not_begun_again(asked: Asked) -> None:
    for time in range(1, TRIES + 1):
        asked.region.put_if_absent(asked.errand.begun(time), b"a worker that is gone")

    with pytest.raises(Reject):
        do(asked.stores, asked.message)

    answer = asked.region.get(asked.errand.answer)
    assert answer is not None
    with pytest.raises(WorkerLost, match=r"source docs: each worker that began copy_layer was lost, 3 times\. Cure: "):
        result_of(copy_layer, answer)
    assert asked.region.get(asked.task.layer.path(SOURCE)) is None


@pytest.mark.parametrize("kind", ["amqp", "redis"])
def test_a_step_whose_broker_is_gone_gives_up_in_bounded_time_and_says_why(
    kind: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANY_BROKER", f"{kind}://user:sekret@127.0.0.1:{closed.getsockname()[1]}/")
        options = WorkOptions(backend="celery", broker="env:ANY_BROKER", patience_seconds=0.5)
        workers = Workers(options, {"primary": asked.task.primary, "region": asked.region.url}, "region")

        with pytest.raises(WorkersSilent, match=r"1 of 1 copy_layer .*takes no task \(.*refused.*Cure: ") as silent:
            workers(copy_layer, asked.region, [asked.task])

    assert "sekret" not in str(silent.value)


@pytest.mark.parametrize("value", ["", "postgresql://u:sekret@h/d", "amqp:// u:sekret@h"])
def test_a_variable_without_a_broker_is_named_with_a_cure_and_not_repeated(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANY_BROKER", value)

    with pytest.raises(
        PermanentError, match=r"env:ANY_BROKER, and that variable .*Cure: set ANY_BROKER to amqp"
    ) as error:
        WorkOptions(backend="celery", broker="env:ANY_BROKER").broker_url()

    assert "sekret" not in str(error.value)
