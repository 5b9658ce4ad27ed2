"""Celery as this project sets it up: what a worker runs, and how a broker keeps what is not done yet.

`celery -A embedding_assets.work.celery worker -Q cpu` starts a worker, and `embedding-assets worker` the same from the
settings. Why each value is what it is, and what other guides say, stands in docs/celery.md.
"""

import logging
import os
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final

from celery import Celery, signals
from celery.exceptions import Reject
from kombu import Exchange, Queue
from pydantic import TypeAdapter, ValidationError

from embedding_assets.errors import PermanentError, PipelineError
from embedding_assets.snapshots.stores import opened
from embedding_assets.work.errands import Errand
from embedding_assets.work.failures import WorkerLost, failure_of
from embedding_assets.work.tasks import Answer, Job, answered, first_of, understood

_log = logging.getLogger(__name__)

BROKER: Final = "EMBEDDING_ASSETS_BROKER"
"""The variable with a worker's broker, a URL."""

STORES: Final = "EMBEDDING_ASSETS_STORES"
"""The variable with the stores that a worker may open: `{"region": "URL"}`."""

NAME: Final = "embedding_assets.do"

QUEUES: Final[Mapping[str, str]] = {"make_chunks": "cpu", "copy_layer": "load.{region}"}
"""The queue of each work that any machine with the stores can do. The rest needs files of the step's own machine."""

_EXCHANGE: Final = "embedding_assets"

DEAD: Final = Queue("dead_tasks", durable=True, queue_arguments={"x-queue-type": "quorum"})
"""Where RabbitMQ puts what was refused."""

TRIES: Final = 3
"""That a task may begin. One that kills its worker each time is refused the next time."""

SOFT_LIMIT: Final = 840
HARD_LIMIT: Final = 900
"""Seconds. RabbitMQ cuts off a consumer that acknowledges nothing for 1,800."""


def queue(name: str) -> Queue:
    """A queue of tasks: kept on disk by a majority, bounded, and with a place for what cannot be done."""
    return Queue(
        name,
        Exchange(_EXCHANGE, type="direct"),
        routing_key=name,
        durable=True,
        queue_arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": 20,  # for what kills a worker before it can count: beyond TRIES
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": DEAD.name,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",  # the publisher is told, rather than the oldest dropped
            "x-max-length": 100_000,
        },
    )


def application(broker: str, stores: Mapping[str, str]) -> Celery:
    """Celery on this broker, for the stores of these regions by name."""
    made = Celery("embedding_assets", broker=broker, set_as_current=False)
    names = sorted({template.format(region=region) for template in QUEUES.values() for region in stores})
    made.conf.update(
        task_queues=[queue(name) for name in names],
        task_create_missing_queues=False,
        task_default_queue="cpu",
        task_default_queue_type="quorum",
        # A message is small JSON, and nothing else is read.
        accept_content=["json"],
        task_serializer="json",
        # The parts and the answers in the store are the results.
        task_ignore_result=True,
        # A task is acknowledged when it is done. Until then it belongs to the broker.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=False,
        worker_lost_wait=1.0,  # for a result, which no task has
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=True,
        task_soft_time_limit=SOFT_LIMIT,
        task_time_limit=HARD_LIMIT,
        worker_max_tasks_per_child=200,
        worker_max_memory_per_child=2_000_000,  # KiB; a shard needs a tenth of it
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        **_transport(broker),
    )
    allowed = frozenset(stores.values())

    def _do(*given: Any, **named: Any) -> None:
        do(allowed, *given, **named)

    made.task(name=NAME)(_do)
    return made


def _transport(broker: str) -> dict[str, Any]:
    """What differs between the brokers. TLS is as its URL says, and then the other's certificate has to hold."""
    tls: dict[str, Any] = {}
    if broker.startswith("redis"):
        if broker.startswith("rediss:"):
            tls = {"broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED}}
        # What nobody has acknowledged by then goes to another worker.
        return {"broker_transport_options": {"visibility_timeout": 2 * HARD_LIMIT}, **tls}
    if broker.startswith("amqps:"):
        # None: kombu fills in the host, whose name the certificate has to have.
        tls = {"broker_use_ssl": {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}}
    return {"broker_transport_options": {"confirm_publish": True}, **tls}


def do(stores: frozenset[str], *given: Any, **named: Any) -> None:
    """Do an errand and leave the answer in its store; nothing where that has one already.

    Raises:
        Reject: it is no errand for this worker, or killed each worker that began it. It is not delivered again.
    """
    errand = _errand(stores, given, named)
    store = opened(errand.store)
    if store.modified(errand.answer) is not None:
        return
    try:
        job = understood(errand.line)
        _allowed(stores, job)
        if not any(store.put_if_absent(errand.begun(time), _me()) for time in range(1, TRIES + 1)):
            raise WorkerLost(
                f"source {errand.source}: each worker that began {job.work.__name__} was lost, {TRIES} times. Cure: if "
                "the workers are short of memory, give them more or a smaller --concurrency; and run again."
            )
    except PipelineError as error:
        refusal = Answer(failure=failure_of(error), seconds=0)
        store.put_if_absent(errand.answer, refusal.model_dump_json().encode())
        raise Reject(str(error), requeue=False) from error
    store.put_if_absent(errand.answer, answered(errand.line))


def _errand(stores: frozenset[str], given: tuple[Any, ...], named: Mapping[str, Any]) -> Errand:
    """What a message asks for. Raises Reject: nobody may be answered, for there is no place that can be trusted."""
    try:
        (sent,) = given
        errand = Errand.model_validate({**sent, **named})
    except (ValueError, TypeError) as error:
        said = first_of(error) if isinstance(error, ValidationError) else "one argument is expected"
        _log.error("refused a message that is no errand: %s", said)
        raise Reject(f"no errand: {said}", requeue=False) from error
    if errand.store not in stores:
        _log.error("refused an errand of source %s for a store that is none of %s", errand.source, STORES)
        raise Reject(f"a store that is none of {STORES}", requeue=False)
    return errand


def _allowed(stores: frozenset[str], job: Job) -> None:
    """Raises PermanentError where the task is not one that a broker may bring."""
    if job.work.__name__ not in QUEUES:
        raise PermanentError(
            f"{job.work.__name__} is not done by workers behind a broker, {', '.join(QUEUES)} are. Cure: run workers "
            "of the same version as whoever sends the tasks."
        )
    if not stores >= job.task.stores:
        raise PermanentError(
            f"source {job.task.source}: a task names a store that its worker does not have. Cure: give the worker all "
            f"regions of the settings in {STORES}; `embedding-assets worker` does."
        )


def _me() -> bytes:
    return f"{socket.gethostname()}:{os.getpid()}".encode()


def _is_configured(**_: Any) -> None:
    if not (os.environ.get(BROKER) and os.environ.get(STORES)):
        raise SystemExit(
            f'{BROKER} and {STORES} are not set. Cure: set the broker\'s URL, and {{"region": "URL of its store"}}; or '
            "start workers by `embedding-assets worker`, which takes both from the settings."
        )


def _declare_dead(sender: Any, **_: Any) -> None:
    with sender.app.connection_for_write() as connection:
        DEAD.bind(connection.default_channel).declare()


signals.celeryd_init.connect(_is_configured)
signals.worker_ready.connect(_declare_dead)

app: Final = application(
    os.environ.get(BROKER, ""), TypeAdapter(dict[str, str]).validate_json(os.environ.get(STORES, "{}"))
)
"""What `celery -A` takes."""
