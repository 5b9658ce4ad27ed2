"""Where the vector of every text of one source and model is: in layers of the store, or here until one is written.

A vector is here before it is counted as done, so that a crash pays again for nothing but requests in flight; and a
text that moved to another document or shard is found and not bought again. SQLite, one file a source and model: losing
it costs reading the last snapshot's layers once, and whatever none of those holds.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedding_assets.embedding.engine.takes import ANYTHING, Takes
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.snapshot import Layer
from embedding_assets.snapshots.sqlite_files import sqlite_file

# The tables call layers parts. A text may be in many, and has to be found when garbage collection took some of them.
_SCHEMA = """
create table if not exists bought (text_hash blob primary key, vector blob not null);
create table if not exists parts (number integer primary key, key text unique not null, part text not null);
create table if not exists places (
    text_hash blob, part integer, place integer not null, primary key (text_hash, part)
) without rowid;
create index if not exists places_by_part on places (part);
create table if not exists takes (items integer, tokens integer, noted real not null);
create table if not exists stored (text_hash blob, object text, primary key (text_hash, object)) without rowid;
"""

# SQLite takes at most 32,766 parameters a statement; a shard has some thousand texts.
_AT_ONCE = 5000

_TAKES_SECONDS = 7 * 86_400  # then the endpoint is asked for more again


class Found(NamedTuple):
    """Where vectors are: their float32 bytes by text hash, and (text hash, row) pairs by the layer that has them."""

    here: dict[bytes, bytes]
    elsewhere: list[tuple[Layer, list[tuple[bytes, int]]]]


class Journal:
    """One source's vectors of one model."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def add(self, text_hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep vectors, (n, d) float32, until a layer holds them; durable against a kill when this returns."""
        with self._db:
            self._db.executemany(
                "insert into bought values (?, ?) on conflict do nothing",
                zip(text_hashes, (row.tobytes() for row in vectors), strict=True),
            )
        failpoint(Failpoint.AFTER_JOURNAL)

    def bought(self) -> Iterator[tuple[bytes, bytes]]:
        """(text hash, float32 bytes) of every vector that no layer holds yet."""
        yield from self._db.execute("select text_hash, vector from bought")

    def unstored(self, most: int) -> list[tuple[bytes, bytes]]:
        """(text hash, float32 bytes) of so many vectors that neither a layer holds nor an object of leftovers."""
        return self._db.execute(
            "select text_hash, vector from bought where text_hash not in (select text_hash from stored) "
            "order by text_hash limit ?",
            (most,),
        ).fetchall()

    def note_stored(self, path: str, text_hashes: Iterable[bytes]) -> None:
        """Note that an object of leftovers holds these vectors."""
        with self._db:
            self._db.executemany(
                "insert into stored values (?, ?) on conflict do nothing",
                ((text_hash, path) for text_hash in text_hashes),
            )

    def objects(self) -> set[str]:
        """The paths of the objects of leftovers that are known."""
        return {path for (path,) in self._db.execute("select distinct object from stored")}

    def forget_objects(self, paths: Iterable[str]) -> None:
        """These objects of leftovers are gone."""
        with self._db:
            self._db.executemany("delete from stored where object = ?", ((path,) for path in paths))

    def takes(self) -> Takes:
        """What the endpoint was found to take in one request in the last days."""
        row = self._db.execute(
            "select items, tokens from takes where noted > ?", (time.time() - _TAKES_SECONDS,)
        ).fetchone()
        return ANYTHING if row is None else Takes(*row)

    def note_takes(self, takes: Takes) -> None:
        """Remember what the endpoint takes, if that is news."""
        if takes != self.takes():
            with self._db:
                self._db.execute("delete from takes")
                self._db.execute("insert into takes values (?, ?, ?)", (*takes, time.time()))

    def indexed(self, layer: Layer) -> bool:
        """Whether the rows of this very file are known."""
        row = self._db.execute("select part from parts where key = ?", (layer.key,)).fetchone()
        return row is not None and Layer.model_validate_json(row[0]) == layer

    def index(self, layer: Layer, text_hashes: Iterable[bytes | None]) -> None:
        """Note that row i of a durable layer holds the vector of the i-th hash (None: no vector); drop our copies."""
        with self._db:
            number = self._db.execute(
                "insert into parts (key, part) values (?, ?) "
                "on conflict (key) do update set part = excluded.part returning number",
                (layer.key, layer.model_dump_json()),
            ).fetchone()[0]
            self._db.executemany(
                "insert into places values (?, ?, ?) on conflict do nothing",
                ((text_hash, number, place) for place, text_hash in enumerate(text_hashes) if text_hash is not None),
            )
            self._db.execute(
                "delete from bought where text_hash in (select text_hash from places where part = ?)", (number,)
            )

    def keep_only(self, sizes: Mapping[str, int]) -> None:
        """Forget every layer that is not as long as it is known to be: `sizes` are bytes by key, as the store lists
        them."""
        for key, described in self._db.execute("select key, part from parts").fetchall():
            if sizes.get(key) != Layer.model_validate_json(described).bytes:
                self.forget(key)

    def forget(self, key: str) -> None:
        """A layer is gone: what only it held is unknown again."""
        with self._db:
            self._db.execute("delete from places where part = (select number from parts where key = ?)", (key,))
            self._db.execute("delete from parts where key = ?", (key,))

    def held(self, text_hashes: Sequence[bytes]) -> set[bytes]:
        """Those of these texts that have a durable vector."""
        tables = ("bought", "places")
        return {text_hash for table in tables for (text_hash,) in self._select("text_hash", table, text_hashes)}

    def find(self, text_hashes: Sequence[bytes]) -> Found:
        """Where the vectors of these texts are, in as few layers as a greedy choice finds."""
        here = dict(self._select("text_hash, vector", "bought", text_hashes))
        places: dict[int, dict[bytes, int]] = defaultdict(dict)
        for text_hash, part, place in self._select("text_hash, part, place", "places", text_hashes):
            if text_hash not in here:
                places[part][text_hash] = place
        elsewhere: list[tuple[Layer, list[tuple[bytes, int]]]] = []
        placed: set[bytes] = set()
        for number in sorted(places, key=lambda number: (-len(places[number]), number)):
            rows = [(text_hash, place) for text_hash, place in places[number].items() if text_hash not in placed]
            if rows:
                described = self._db.execute("select part from parts where number = ?", (number,)).fetchone()[0]
                elsewhere.append((Layer.model_validate_json(described), rows))
                placed.update(places[number])
        return Found(here, elsewhere)

    def _select(self, columns: str, table: str, text_hashes: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(text_hashes), _AT_ONCE):
            batch = text_hashes[start : start + _AT_ONCE]
            marks = ",".join("?" * len(batch))
            query = f"select {columns} from {table} where text_hash in ({marks})"  # noqa: S608 - all of them are ours
            yield from self._db.execute(query, batch)


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal in this file, which is made if it is not there. Raises TransientError as `sqlite_file` does."""
    with sqlite_file(path, "what it alone held is embedded anew") as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.executescript(_SCHEMA)
        yield Journal(connection)
