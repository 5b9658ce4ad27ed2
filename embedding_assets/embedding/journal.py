"""Where the vector of every text of one source and model is: in a part of the store, or here until its part is written.

A vector is here before it is counted as done, so that a crash pays again for nothing but requests in flight; and a
text that moved to another document or shard is found and not bought again. SQLite, one file a source and model: losing
it costs reading the parts' hash columns once, and whatever no part holds yet.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedding_assets.snapshots.failpoints import failpoint
from embedding_assets.snapshots.snapshot import Part

_SCHEMA = """
create table if not exists parts (number integer primary key, key text unique not null, part text not null);
create table if not exists vectors (
    text_hash blob primary key, vector blob, part integer, place integer
) without rowid;
create index if not exists vectors_by_part on vectors (part) where part is not null;
"""

# SQLite takes at most 32,766 parameters a statement; a shard has some thousand texts.
_AT_ONCE = 5000


class Journal:
    """One source's vectors of one model. Calls may come from any thread; they take turns."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._turn = threading.Lock()

    def add(self, text_hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep vectors, (n, d) float32, until a part holds them; durable against a kill when this returns."""
        with self._turn, self._db:
            self._db.executemany(
                "insert into vectors (text_hash, vector) values (?, ?) on conflict do nothing",
                zip(text_hashes, (row.tobytes() for row in vectors), strict=True),
            )
        failpoint("after-journal")

    def indexed(self, key: str) -> bool:
        """Whether the rows of this part are known."""
        with self._turn:
            return self._db.execute("select 1 from parts where key = ?", (key,)).fetchone() is not None

    def index(self, part: Part, text_hashes: Iterable[bytes | None]) -> None:
        """Note that row i of a durable part holds the vector of the i-th hash (None: no vector); drop our copies."""
        with self._turn, self._db:
            number = self._db.execute(
                "insert into parts (key, part) values (?, ?) returning number", (part.key, part.model_dump_json())
            ).fetchone()[0]
            self._db.executemany(
                "insert into vectors values (?, null, ?, ?) on conflict (text_hash) do update "
                "set vector = null, part = excluded.part, place = excluded.place",
                ((text_hash, number, place) for place, text_hash in enumerate(text_hashes) if text_hash is not None),
            )

    def forget(self, key: str) -> None:
        """A part is gone: what only it held is unknown again."""
        with self._turn, self._db:
            self._db.execute("delete from vectors where part = (select number from parts where key = ?)", (key,))
            self._db.execute("delete from parts where key = ?", (key,))

    def find(self, text_hashes: Sequence[bytes]) -> tuple[dict[bytes, bytes], dict[str, list[tuple[bytes, int]]]]:
        """Where the vectors of these texts are; a text that is in neither has no durable vector.

        Returns the float32 bytes by hash of those kept here, and (hash, row) pairs by the JSON of the part with them.
        """
        here: dict[bytes, bytes] = {}
        elsewhere: dict[int, list[tuple[bytes, int]]] = {}
        with self._turn:
            for start in range(0, len(text_hashes), _AT_ONCE):
                some = text_hashes[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"select text_hash, vector, part, place from vectors where text_hash in ({marks})"  # noqa: S608
                for text_hash, vector, part, place in self._db.execute(query, some):
                    if vector is not None:
                        here[text_hash] = vector
                    else:
                        elsewhere.setdefault(part, []).append((text_hash, place))
            query = "select part from parts where number = ?"
            return here, {self._db.execute(query, (n,)).fetchone()[0]: rows for n, rows in elsewhere.items()}


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal in this file, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, check_same_thread=False, timeout=60)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.executescript(_SCHEMA)
        yield Journal(connection)
