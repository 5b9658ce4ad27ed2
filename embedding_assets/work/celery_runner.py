"""Working on the shards of a source by workers behind a broker."""

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from amqp.exceptions import MessageNacked
from celery import Celery
from kombu.exceptions import OperationalError

from embedding_assets.errors import TransientError
from embedding_assets.snapshots.stores import Store
from embedding_assets.snapshots.tasks import Task
from embedding_assets.telemetry.events import TaskSettled, Tell, unheard
from embedding_assets.work import errands, pool
from embedding_assets.work.celery import DEAD, NAME, QUEUES, application
from embedding_assets.work.errands import Errand
from embedding_assets.work.options import WorkOptions
from embedding_assets.work.tasks import Answer, ordered, result_of

T = TypeVar("T", bound=Task)
R = TypeVar("R")

_log = logging.getLogger(__name__)

_BACKLOG: Final = 256
"""Tasks of one step that a broker has at most."""

_PAUSES: Final = (0.05, 1.0)
"""Seconds between two looks at the store: doubled while nothing comes."""

_EXPIRES: Final = 86_400
"""Seconds after which a worker passes over a task: the step that sent it has long been killed, or sent it again."""

_CONFIRMED: Final = 30.0
"""Seconds that the broker has to confirm a message."""


class WorkersSilent(TransientError):
    """Nothing that a step waits for was done for too long."""


@dataclass(frozen=True)
class Workers:
    """Workers behind a broker, as a step reaches them."""

    options: WorkOptions
    stores: Mapping[str, str]
    """URL by region."""
    region: str
    """Whose store the work writes to."""

    def __call__(
        self, work: Callable[[Store, T], R], store: Store, tasks: Sequence[T], tell: Tell = unheard
    ) -> list[R]:
        """Do `work` for each task by whichever workers take it; the results in the order of the tasks. A runner.

        The tasks of the step go to the broker, a bounded number at a time, and the store is looked at for the answers.
        What fails is raised once the tasks before it have ended; what workers have not begun is revoked. What needs
        files of this machine is done here.

        Raises:
            WorkersSilent: nothing was answered for `patience_seconds`, though it was sent again.
            WorkerLost: each worker that began a task was lost.
            PermanentError: no broker is named.
        """
        if work.__name__ not in QUEUES:
            return pool.local(work, store, tasks, tell)
        app = _application(self.options.broker_url(), tuple(sorted(self.stores.items())))
        queue = QUEUES[work.__name__].format(region=self.region)
        step = _Step(app, queue, work, store, tasks, self.options)
        try:
            return step.results(tell)
        finally:
            step.close()


@lru_cache
def _application(broker: str, stores: tuple[tuple[str, str], ...]) -> Celery:
    return application(broker, dict(stores))


def _errors(app: Celery) -> tuple[type[Exception], ...]:
    """What a broker that is away, or full, raises."""
    found = app.connection_for_write().connection_errors
    return (
        OperationalError,
        MessageNacked,
        *(error for error in found if issubclass(error, Exception) and error is not KeyError),
    )


class _Step:
    """What one call of the runner has sent, and heard."""

    def __init__(
        self,
        app: Celery,
        queue: str,
        work: Callable[..., Any],
        store: Store,
        tasks: Sequence[Task],
        options: WorkOptions,
    ) -> None:
        self._app, self._queue, self._work, self._store, self._options = app, queue, work, store, options
        self._submission = uuid.uuid4().hex
        self._source = tasks[0].source if tasks else ""
        self._errands = [
            Errand(
                source=task.source,
                submission=self._submission,
                number=number,
                **ordered(work, store, task).model_dump(),
            )
            for number, task in enumerate(tasks)
        ]
        self._unsent = deque(range(len(tasks)))
        self._out: dict[int, None] = {}
        self._answers: dict[int, bytes] = {}
        self._read: set[int] = set()
        self._heard = self._sent = time.monotonic()
        self._refusal = ""
        self._declared = False

    def results(self, tell: Tell) -> list[Any]:
        """The results, when all are there; raises what the first task that failed has raised."""
        results: list[Any] = []
        pause = _PAUSES[0]
        while len(results) < len(self._errands):
            self._send()
            time.sleep(pause)
            pause = _PAUSES[0] if self._look() else min(2 * pause, _PAUSES[1])
            while (answer := self._answers.pop(len(results), None)) is not None:
                result, seconds = result_of(self._work, answer)
                results.append(result)
                tell(TaskSettled(self._work.__name__, seconds, len(results), len(self._errands)))
            self._judge(len(results))
        return results

    def close(self) -> None:
        """Take back what is not begun, and what was left in the store."""
        if self._out:
            try:
                self._app.control.revoke([self._errands[number].id for number in self._out])
            except _errors(self._app) as error:
                _log.warning(
                    "source %s: tasks could not be revoked, and may be done for nothing: %s", self._source, error
                )
        if self._errands:
            self._store.delete(errands.left(self._store, self._source, self._submission).paths)

    def _send(self) -> None:
        """Give the broker what it may have. What it does not take is tried again at the next look."""
        while self._unsent and len(self._out) < _BACKLOG:
            number = self._unsent[0]
            errand = self._errands[number]
            try:
                self._declare()
                self._app.send_task(
                    NAME,
                    [errand.model_dump(mode="json")],
                    task_id=errand.id,
                    queue=self._queue,
                    declare=[],  # kombu would remember for ever that a queue is there
                    expires=_EXPIRES,
                    retry_policy={"max_retries": 1, "interval_start": 0.2},
                    confirm_timeout=_CONFIRMED,
                    timeout=_CONFIRMED,
                )
            except _errors(self._app) as error:
                if not self._refusal:
                    _log.warning("source %s: the broker takes no task, it is tried again: %s", self._source, error)
                self._refusal = str(error) or type(error).__name__
                self._declared = False
                return
            self._refusal = ""
            self._unsent.popleft()
            self._out[number] = None

    def _declare(self) -> None:
        """See that the queues are there: a message to none is lost, without a word, though it is confirmed."""
        if not self._declared:
            with self._app.connection_for_write() as connection, connection.channel() as channel:
                for queue in (DEAD, self._app.amqp.queues[self._queue]):
                    queue.bind(channel).declare()
            self._declared = True

    def _look(self) -> bool:
        """Read the answers that are new; whether there are any. After a failure nothing behind it is sent."""
        new = errands.left(self._store, self._source, self._submission).answered - self._read
        for number in new & set(range(len(self._errands))):
            answer = self._store.get(self._errands[number].answer)
            if answer is None:
                continue
            self._read.add(number)
            self._answers[number] = answer
            self._out.pop(number, None)
            failed = Answer.model_validate_json(answer).failure is not None
            self._unsent = deque(n for n in self._unsent if n != number and not (failed and n > number))
        if new:
            self._heard = self._sent = time.monotonic()
        return bool(new)

    def _judge(self, done: int) -> None:
        """Send again what is overdue; give up when that has not helped for long.

        Raises:
            WorkersSilent: see there.
        """
        now, silent = time.monotonic(), time.monotonic() - self._heard
        if silent > self._options.patience_seconds:
            broker = f"takes no task ({self._refusal})" if self._refusal else "took them"
            raise WorkersSilent(
                f"source {self._source}: {len(self._errands) - done} of {len(self._errands)} {self._work.__name__} are "
                f"not done, and none was for {silent:.0f} s; the broker {broker}. Cure: see that the broker runs, and "
                f"workers on queue {self._queue} (`embedding-assets worker --queues {self._queue}`); and run again."
            )
        if self._out and now - self._sent > self._options.overdue_seconds:
            _log.warning("source %s: %d tasks are overdue and are sent again", self._source, len(self._out))
            self._unsent.extendleft(reversed(self._out))
            self._out.clear()
            self._declared = False
            self._sent = now


def listening(options: WorkOptions, stores: Mapping[str, str], seconds: float = 5) -> dict[str, list[str]]:
    """The queues of each worker that answers within so many seconds, by the worker's name.

    Raises TransientError: the broker does not answer.
    """
    app = _application(options.broker_url(), tuple(sorted(stores.items())))
    try:
        found = app.control.inspect(timeout=seconds).active_queues() or {}
    except _errors(app) as error:
        raise TransientError(f"the broker does not answer: {error}. Cure: see that it runs, and is reached.") from error
    return {name: sorted(queue["name"] for queue in queues) for name, queues in found.items()}
