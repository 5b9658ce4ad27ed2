"""The tasks there are, and how one travels: as a line of JSON to a worker, and its result as a line back."""

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.stores import Store, opened
from embedding_assets.snapshots.tasks import Task
from embedding_assets.work.failures import Failure, failure_of, raised

Work = Callable[..., Any]

MODULES: Final[Mapping[str, str]] = {
    "make_documents": "embedding_assets.sources.parts",
    "make_chunks": "embedding_assets.chunking.stage",
    "embed_shards": "embedding_assets.embedding.task",
    "copy_layer": "embedding_assets.snapshots.replication",
}
"""What can be asked for, and where it is done: functions of a store and a task, annotated with the task's class and the
result's. Imported when asked for: a worker that cuts has no need of the engine, a quarter of what it would import."""


def work_of(name: str) -> Work:
    """The function that does the work of this name. Raises KeyError: there is none."""
    work: Work = getattr(import_module(MODULES[name]), name)
    return work


class Order(BaseModel):
    """A task as it travels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    work: str
    store: str
    """Its URL."""
    task: dict[str, Any]


class Answer(BaseModel):
    """What became of an order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    result: Any = None
    failure: Failure | None = None
    seconds: float
    """That the work took."""


class Job(NamedTuple):
    """An order that is understood."""

    work: Work
    store: Store
    task: Task


def order(work: Work, store: Store, task: Task) -> bytes:
    """The task as a line of JSON, without its end."""
    return ordered(work, store, task).model_dump_json().encode()


def ordered(work: Work, store: Store, task: Task) -> Order:
    """The task as it travels."""
    return Order(work=work.__name__, store=store.url, task=task.model_dump(mode="json"))


def understood(line: bytes) -> Job:
    """What an order asks for, validated before anything is done.

    Raises:
        PermanentError: it is no order, names work that there is not, or a task of another schema.
    """
    cure = "Cure: run workers of the same version as whoever sends the tasks."
    try:
        asked = Order.model_validate_json(line)
    except ValidationError as error:
        raise PermanentError(f"not an order for work: {first_of(error)}. {cure}") from error
    if asked.work not in MODULES:
        raise PermanentError(f"no work is named {asked.work[:80]!r}, there are {', '.join(MODULES)}. {cure}")
    work = work_of(asked.work)
    try:
        task: Task = get_type_hints(work)["task"].model_validate(asked.task)
    except ValidationError as error:
        raise PermanentError(f"not a task for {asked.work}: {first_of(error)}. {cure}") from error
    return Job(work, opened(asked.store), task)


def answered(line: bytes) -> bytes:
    """Do what an order asks for; the answer as a line of JSON, without its end. Whatever fails is in the answer."""
    began = time.monotonic()
    result, failure = None, None
    try:
        work, store, task = understood(line)
        began = time.monotonic()
        result = _results(work).dump_python(work(store, task), mode="json")
    except Exception as error:
        failure = failure_of(error)
    return Answer(result=result, failure=failure, seconds=time.monotonic() - began).model_dump_json().encode()


def result_of(work: Work, line: bytes) -> tuple[Any, float]:
    """The result in an answer, and the seconds that the work took. Raises what the work raised."""
    answer = Answer.model_validate_json(line)
    if answer.failure is not None:
        raise raised(answer.failure)
    return _results(work).validate_python(answer.result), answer.seconds


def _results(work: Work) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(work)["return"])


def first_of(error: ValidationError) -> str:
    """The first of its errors, without the value: that comes from outside."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))[:80]
    return f"{place!r}: {first['msg']}" if place else first["msg"]
