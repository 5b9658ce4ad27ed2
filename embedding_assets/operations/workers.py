"""Workers behind a broker, started and looked at with what the settings say."""

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from embedding_assets.errors import PermanentError
from embedding_assets.operations.deployment import Deployment

_EXTRA = "Cure: pip install 'embedding-assets[pipeline,celery]'"


def become_worker(deployment: Deployment, queues: Sequence[str], concurrency: int) -> NoReturn:
    """Turn this process into Celery's own worker, which then gets the signals itself.

    Raises PermanentError where the settings name no broker, or the extra [celery] is not installed.
    """
    broker = _broker(deployment)
    from embedding_assets.work import celery

    stores = json.dumps(deployment.stores)
    environment = {**os.environ, celery.BROKER: broker, celery.STORES: stores}
    name = f"{'+'.join(queues)}-{os.getpid()}@%h"
    command = ["-m", "celery", "-A", celery.__name__, "worker", "-n", name, "-c", str(concurrency), "-l", "INFO"]
    command += ["-Q", ",".join(queues)]
    os.execve(sys.executable, [sys.executable, *command], environment)  # noqa: S606 (a list of words, no shell)


def workers_here(deployment: Deployment) -> dict[str, list[str]]:
    """The queues of each worker of this machine that answers, by its name.

    Raises:
        TransientError: the broker does not answer.
        PermanentError: as `become_worker`.
    """
    _broker(deployment)
    from embedding_assets.work.celery_runner import listening

    answered = listening(deployment.settings.work, deployment.stores)
    return {name: queues for name, queues in answered.items() if name.endswith(f"@{socket.gethostname()}")}


def _broker(deployment: Deployment) -> str:
    """The broker's URL."""
    if deployment.settings.work.backend != "celery":
        raise PermanentError("the settings have no broker. Cure: write `work: {backend: celery, broker: env:NAME}`")
    if importlib.util.find_spec("celery") is None:
        raise PermanentError(f"Celery is not installed. {_EXTRA}")
    return deployment.settings.work.broker_url()
