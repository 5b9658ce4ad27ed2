"""A line now and then while a provider gives no sound answer: what is waited for, since when, and until when."""

import logging
import time
from datetime import datetime, timedelta
from typing import Final

from embedding_assets.embedding.engine.gate import Patience
from embedding_assets.embedding.engine.requests import Requests

_log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 10.0


class Waiting:
    """Looks at the requests of a run about once a second, and says what it waits for when it does so for long."""

    def __init__(self, requests: Requests, timeout_seconds: float, patience: Patience) -> None:
        self._requests = requests
        self._timeout_seconds = timeout_seconds
        self._patience = patience
        self._heard = self._told = time.monotonic()

    def look(self, heard: bool) -> None:
        """`heard`: whether anything has come since the last look."""
        now = time.monotonic()
        trouble, gate = self._requests.trouble, self._requests.gate
        if trouble is None and (heard or not gate.in_flight):
            self._heard = now
        since = trouble.since if trouble else self._heard
        if now - max(since, self._told) < EVERY_SECONDS:
            return
        self._told = now
        where = self._requests.where()
        if trouble is None:
            left = f"a request is given up after {self._timeout_seconds:g} s"
            _log.warning("%s: no answer since %s; %s", where, _clock(since - now), left)
            return
        again = f"the next request goes at {_clock(gate.pause())}" if gate.pause() > 0 else "it is asked again"
        end = _clock(since + self._patience.storm_seconds - now)
        said = "%s: no sound answer since %s (%s); %s, until %s at the latest"
        _log.warning(said, where, _clock(since - now), trouble.words, again, end)


def _clock(seconds: float) -> str:
    """The time of day in so many seconds."""
    return f"{datetime.now() + timedelta(seconds=seconds):%H:%M:%S}"
