"""What the last look at a source found, on this machine: which files are unchanged, and which documents they hold.

A catalog only saves reading: it is right for one snapshot of `raw_docs` and one reader, and is thrown away when either
is another. SQLite keeps it out of memory and whole after a kill.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from embedding_assets.snapshots.folders import private_folder
from embedding_assets.snapshots.keys import document_bucket
from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.documents import Document

_SCHEMA_VERSION: Final = 2
"""Goes up whenever a table changes. A catalog of another version is emptied, which costs reading the source once."""

_SCHEMA: Final = """
create table if not exists about (name text primary key, value text not null);
create table if not exists items (name text primary key, mark text not null);
create table if not exists documents (
    item text, position integer, line integer, document_id text not null, bucket integer not null,
    content_hash blob not null, bytes integer not null, text text, metadata text, primary key (item, position)
) without rowid;
create index if not exists documents_by_id on documents (document_id, item, position);
create index if not exists documents_by_bucket on documents (bucket);
create table if not exists rejected (item text, position integer, document_id text, entry text not null);
create index if not exists rejected_by_item on rejected (item);
create table if not exists refused (item text, entry text not null);
create temporary table listed (name text primary key) without rowid;
"""

_OF_AN_ITEM: Final = (("items", "name"), ("documents", "item"), ("rejected", "item"))

# A document is the first of its id, by item and then line: the others of that id are rejected as doubled.
_WINNERS = """
from documents as d where not exists (
    select 1 from documents as e
    where e.document_id = d.document_id and (e.item, e.position) < (d.item, d.position))
"""


class Row(NamedTuple):
    """A document as the catalog knows it; without text and metadata where the last snapshot's parts have them."""

    document_id: str
    content_hash: bytes
    text: str | None
    metadata: str | None


class Catalog:
    """One source's catalog in one SQLite file. Not for two processes at once: the writer of the source holds it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def reset(self, reader: str, root: str) -> None:
        """Forget everything unless it is about this reader's version and this snapshot."""
        about = dict(self._db.execute("select name, value from about"))
        if about == {"reader": reader, "root": root}:
            return
        with self._db:
            for table in ("about", "items", "documents", "rejected", "refused"):
                self._db.execute(f"delete from {table}")  # noqa: S608 - the five names above
            self._db.executemany("insert into about values (?, ?)", [("reader", reader), ("root", root)])

    def begin_listing(self) -> None:
        """Nothing is listed or refused so far."""
        with self._db:
            self._db.execute("delete from listed")
            self._db.execute("delete from refused")

    def list_item(self, name: str) -> None:
        """Note that the source lists an item."""
        self._db.execute("insert into listed values (?)", (name,))

    def refuse(self, thing: RejectedDocument) -> None:
        """Note what the listing itself had to refuse."""
        self._db.execute("insert into refused values (?, ?)", (thing.item, thing.model_dump_json()))

    def end_listing(self) -> None:
        """Forget every item that is no longer listed."""
        with self._db:
            for table, column in _OF_AN_ITEM:
                self._db.execute(f"delete from {table} where {column} not in (select name from listed)")  # noqa: S608

    def unchanged(self, name: str, mark: str) -> bool:
        """Whether an item looks as it did when it was read."""
        return self._db.execute("select 1 from items where (name, mark) = (?, ?)", (name, mark)).fetchone() is not None

    def replace(self, name: str, mark: str | None, found: Iterable[Document | RejectedDocument]) -> None:
        """Put what an item holds now in place of what it held, all or nothing.

        An item without a mark, since its mark says nothing yet, is read again at the next look.
        """
        with self._db:
            self._forget(name)
            readable = True
            for place, thing in enumerate(found):
                if isinstance(thing, RejectedDocument):
                    self._reject(thing)
                    readable = readable and thing.error_class != "unreadable"
                    continue
                self._db.execute(
                    "insert into documents values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        name,
                        place,
                        thing.position,
                        thing.document_id,
                        document_bucket(thing.document_id),
                        thing.content_hash,
                        len(thing.text.encode()),
                        thing.text,
                        thing.metadata_json,
                    ),
                )
            # What could not be read may be readable next time without looking any different: a permission, a mount.
            if readable and mark is not None:
                self._db.execute("insert into items values (?, ?)", (name, mark))

    def totals(self) -> tuple[int, int]:
        """(documents, bytes of text) of the source."""
        return tuple(self._db.execute(f"select count(*), coalesce(sum(d.bytes), 0) {_WINNERS}").fetchone())

    def rejected(self) -> Iterator[str]:
        """Every rejected thing as JSON, by item and position."""
        rows = self._db.execute(
            """select entry from (
                   select item, position, document_id, entry from rejected
                   union all select item, null, null, entry from refused)
               order by item, position, document_id, entry"""
        )
        return (entry for (entry,) in rows)

    def doubled(self) -> Iterator[tuple[str, int | None, str, str]]:
        """(item, line, document_id, item of the document that stands) of each document whose id came before."""
        return self._db.execute(
            """select d.item, d.line, d.document_id, (
                   select e.item from documents as e where e.document_id = d.document_id
                   order by e.item, e.position limit 1) as first
               from documents as d
               where (d.item, d.position) > (
                   select e.item, e.position from documents as e where e.document_id = d.document_id
                   order by e.item, e.position limit 1)
               order by d.item, d.position"""
        )

    def hashes(self, bits: int) -> Iterator[tuple[int, str, bytes]]:
        """(shard, document_id, content_hash) of every document, by shard and then id."""
        return self._db.execute(
            f"select d.bucket >> ? as shard, d.document_id, d.content_hash {_WINNERS} order by shard, d.document_id",
            (32 - bits,),
        )

    def rows(self, shard: int, bits: int) -> list[Row]:
        """The documents of a shard, by id."""
        low, high = shard << (32 - bits), (shard + 1) << (32 - bits)
        found = self._db.execute(
            f"select d.document_id, d.content_hash, d.text, d.metadata {_WINNERS} "
            "and d.bucket >= ? and d.bucket < ? order by d.document_id",
            (low, high),
        )
        return [Row(*row) for row in found]

    def committed(self, root: str) -> None:
        """The documents are in the parts of this snapshot now: keep what was seen, drop the texts.

        The text of a document that lost to another of its id is kept: it stands once the other is gone.
        """
        with self._db:
            self._db.execute(
                f"""update documents as w set text = null, metadata = null
                    where w.text is not null and (w.item, w.position) in (select d.item, d.position {_WINNERS})"""  # noqa: S608
            )
            self._db.execute("update about set value = ? where name = 'root'", (root,))

    def _forget(self, name: str) -> None:
        for table, column in _OF_AN_ITEM:
            self._db.execute(f"delete from {table} where {column} = ?", (name,))  # noqa: S608 - the names above

    def _reject(self, thing: RejectedDocument) -> None:
        self._db.execute(
            "insert into rejected values (?, ?, ?, ?)",
            (thing.item, thing.position, thing.document_id, thing.model_dump_json()),
        )


@contextmanager
def open_catalog(path: Path) -> Iterator[Catalog]:
    """The catalog in this file, which is made if it is not there."""
    private_folder(path.parent)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma journal_mode = wal")
        # A power cut may cost the last items, which are read again; waiting for the disk at each of 10,000 took 50 s.
        connection.execute("pragma synchronous = normal")
        if connection.execute("pragma user_version").fetchone() != (_SCHEMA_VERSION,):
            for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
                connection.execute(f'drop table "{table}"')  # of another version of the schema: the next look fills it
            connection.execute(f"pragma user_version = {_SCHEMA_VERSION}")
        connection.executescript(_SCHEMA)
        yield Catalog(connection)
