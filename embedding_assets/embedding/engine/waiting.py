"""A word about once a second while a provider gives no sound answer: for how long, and for how long it may go on."""

import time

from embedding_assets.embedding.engine.gate import Patience
from embedding_assets.embedding.engine.requests import Requests
from embedding_assets.telemetry.events import AnswerAwaited, RecoveryAwaited, Tell


class Waiting:
    """Looks at the requests of a run about once a second, and tells of what it waits for."""

    def __init__(self, requests: Requests, timeout_seconds: float, patience: Patience, tell: Tell) -> None:
        self._requests = requests
        self._timeout_seconds = timeout_seconds
        self._patience = patience
        self._tell = tell
        self._heard = time.monotonic()

    def look(self, heard: bool) -> None:
        """`heard`: whether anything has come since the last look."""
        now = time.monotonic()
        trouble, gate = self._requests.trouble, self._requests.gate
        if trouble is not None:
            waited, left = now - trouble.since, trouble.since + self._patience.storm_seconds - now
            self._tell(RecoveryAwaited(self._requests.where(), waited, trouble.words, gate.pause(), left))
        elif heard or not gate.in_flight:
            self._heard = now
        else:
            self._tell(AnswerAwaited(self._requests.where(), now - self._heard, self._timeout_seconds))
