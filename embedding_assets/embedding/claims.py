"""What each attempt of a run may have used of its budget, in the primary's store: for attempts that have another home.

An attempt claims, before it uses it, a tenth more than it is about to use, and at its end what it did use. A claim is
an object that is written once, `budgets/<run>/<attempt>/<number>.json`; the next takes its place, and the one before
goes. So a killed attempt counts for a tenth too much at most, and for nothing too little.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_assets.errors import TransientError
from embedding_assets.snapshots.stores import Store

_log = logging.getLogger(__name__)

FOLDER: Final = "budgets"

_MARGIN: Final = 10  # a tenth: some 50 claims from a first request to a million tokens


class Claim(BaseModel):
    """What an attempt may have used: tokens, dollars, and since when (a Unix time)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    began: float
    tokens: int = Field(ge=0)
    cost_usd: float = Field(ge=0)


class Claims:
    """One attempt's claims among those of its run. A store that is away fails no run: its home has the sum still."""

    def __init__(self, store: Store, run: str, kept_seconds: float) -> None:
        self._store = store
        self._folder = f"{FOLDER}/{hashlib.sha256(run.encode()).hexdigest()[:32]}"
        self._kept_seconds = kept_seconds
        self.attempt = uuid.uuid4().hex
        self._number = 0
        self._claimed = Claim(began=time.time(), tokens=0, cost_usd=0.0)

    def cover(self, tokens: int, cost_usd: float) -> dict[str, Claim] | None:
        """Claim this use, if it is not claimed yet; then what the other attempts claim, by attempt."""
        if self._number and tokens <= self._claimed.tokens and cost_usd <= self._claimed.cost_usd:
            return None
        try:
            if not self._number:
                self._remove_old()
            self._put(tokens + tokens // _MARGIN, cost_usd * (1 + 1 / _MARGIN))
            # Written first, listed then: of two that claim at once, one sees the other at least.
            return dict(self._others())
        except TransientError as error:
            _log.warning("what the run has used is in this home alone: %s", error)
            return None

    def close(self, tokens: int, cost_usd: float) -> None:
        """Claim what was used, and no more."""
        if self._number:
            try:
                self._put(tokens, cost_usd)
            except TransientError as error:
                _log.warning("what the run has used is in this home alone: %s", error)

    def _put(self, tokens: int, cost_usd: float) -> None:
        claim = self._claimed.model_copy(update={"tokens": tokens, "cost_usd": cost_usd})
        before, self._number = self._path(self._number), self._number + 1
        self._store.put_if_absent(self._path(self._number), claim.model_dump_json().encode())
        self._claimed = claim
        self._store.delete([before])

    def _path(self, number: int) -> str:
        return f"{self._folder}/{self.attempt}/{number:06d}.json"

    def _others(self) -> Iterator[tuple[str, Claim]]:
        newest: dict[str, Claim] = {}
        for path in sorted(entry.path for entry in self._store.entries(self._folder)):
            attempt = path.split("/")[-2]
            data = self._store.get(path) if attempt != self.attempt else None
            if data is not None:
                try:
                    newest[attempt] = Claim.model_validate_json(data)
                except ValidationError:
                    _log.warning("store %s: %s is damaged, and passed over", self._store.url, path)
        yield from newest.items()

    def _remove_old(self) -> None:
        oldest = time.time() - self._kept_seconds
        self._store.delete([entry.path for entry in self._store.entries(FOLDER) if entry.modified.timestamp() < oldest])
