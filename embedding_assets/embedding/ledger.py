"""What one run has used of its budget: one sum for all its attempts and for both model versions.

They may be processes of their own, side by side or one after another. SQLite, one file for all runs, a row an attempt:
what it has used and what it has reserved. A row that a killed attempt left keeps what was in flight, which may be paid.
Of attempts that have another home the rows are what they claim in the store.
"""

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from embedding_assets.embedding.claims import Claim, Claims
from embedding_assets.snapshots.sqlite_files import sqlite_file
from embedding_assets.snapshots.stores import StoreByUrl

_SCHEMA: Final = """
begin immediate;
create table if not exists attempts (
    attempt text primary key, run text not null, began real not null, tokens integer not null, cost_usd real not null
) without rowid;
create index if not exists attempts_by_run on attempts (run);
create table if not exists elsewhere (
    attempt text primary key, run text not null, began real not null, tokens integer not null, cost_usd real not null
) without rowid;
commit;
"""

_KEPT_SECONDS: Final = 30 * 86_400  # no run is tried again after so long


@dataclass(frozen=True)
class Account:
    """Where a run's use is kept: the ledger's file, and the run's name in it, the same for all of its attempts; and the
    store that attempts with another home have in common with it."""

    path: Path
    run: str
    store: StoreByUrl | None = None


class Used(NamedTuple):
    """What all attempts of a run have used or reserved, and how long ago the first of them began."""

    tokens: int
    cost_usd: float
    seconds: float


class Ledger:
    """One attempt's row among those of its run. Every amount is the attempt's whole use, not what is added."""

    def __init__(self, connection: sqlite3.Connection, run: str, claims: Claims | None) -> None:
        self._db = connection
        self._run = run
        self._claims = claims
        self._attempt = claims.attempt if claims is not None else uuid.uuid4().hex
        for table in ("attempts", "elsewhere"):
            self._db.execute(f"delete from {table} where began < ?", (time.time() - _KEPT_SECONDS,))  # noqa: S608 - ours
        self._db.execute("insert into attempts values (?, ?, ?, 0, 0)", (self._attempt, run, time.time()))

    def reserve(self, tokens: int, cost_usd: float, refuses: Callable[[Used, Used], str | None]) -> str | None:
        """Reserve what this attempt will have used, unless `refuses` says why not; what it says.

        It is told what the run uses now, and what it would use. No other attempt reserves in between.
        """
        others = self._claims.cover(tokens, cost_usd) if self._claims is not None else None
        self._db.execute("begin immediate")
        try:
            if others is not None:
                self._note_elsewhere(others)
            began, others_tokens, others_cost, own_tokens, own_cost = self._db.execute(
                "select min(began), total(tokens) filter (where attempt != ?1), total(cost_usd) filter"
                " (where attempt != ?1), total(tokens) filter (where attempt = ?1), total(cost_usd) filter"
                " (where attempt = ?1) from (select * from attempts union all select * from elsewhere) where run = ?2",
                (self._attempt, self._run),
            ).fetchone()
            seconds = time.time() - (began or time.time())
            now = Used(int(others_tokens + own_tokens), others_cost + own_cost, seconds)
            then = Used(int(others_tokens) + tokens, others_cost + cost_usd, seconds)
            if (refusal := refuses(now, then)) is None:
                self.settle(tokens, cost_usd)
        finally:
            self._db.execute("commit")
        return refusal

    def _note_elsewhere(self, claims: Mapping[str, Claim]) -> None:
        """Of attempts that this file has no row of, what they claim: each is counted once."""
        self._db.execute("delete from elsewhere where run = ?", (self._run,))
        self._db.executemany(
            "insert into elsewhere select ?1, ?2, ?3, ?4, ?5 where not exists"
            " (select 1 from attempts where attempt = ?1)",
            [(attempt, self._run, claim.began, claim.tokens, claim.cost_usd) for attempt, claim in claims.items()],
        )

    def close(self) -> None:
        """Free in the store what is reserved here no more."""
        if self._claims is not None:
            own = "select tokens, cost_usd from attempts where attempt = ?"
            self._claims.close(*self._db.execute(own, (self._attempt,)).fetchone())

    def settle(self, tokens: int, cost_usd: float) -> None:
        """Note what this attempt uses now: what is reserved besides is free again."""
        self._db.execute(
            "update attempts set tokens = ?, cost_usd = ? where attempt = ?", (tokens, cost_usd, self._attempt)
        )


@contextmanager
def open_ledger(account: Account | None) -> Iterator[Ledger]:
    """A new attempt's ledger; without an account, one that nobody shares. Raises as `sqlite_file` does."""
    file = (
        closing(sqlite3.connect(":memory:", isolation_level=None))
        if account is None
        else sqlite_file(account.path, "what the run has used is counted anew", isolation_level=None)
    )
    with file as connection:
        # Not a WAL: who switches to it is turned away by another who does, whatever the time-out.
        connection.execute("pragma journal_mode = truncate").fetchone()
        connection.execute("pragma synchronous = off")  # a kill loses nothing of it, and a power cut ends the run
        connection.executescript(_SCHEMA)
        claims = None
        if account is not None and account.store is not None:
            claims = Claims(account.store, account.run, _KEPT_SECONDS)
        ledger = Ledger(connection, account.run if account is not None else "", claims)
        try:
            yield ledger
        finally:
            ledger.close()
