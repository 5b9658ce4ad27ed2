"""What the last look at a source found, on this machine: which files are unchanged, and which documents they hold.

A catalog only saves reading. It is about one snapshot of `raw_docs`: where the last one is another, it is filled anew
from that. SQLite keeps it out of memory and whole after a kill.

What an item held stays until the item is read to its end, or is no longer listed: what cannot be read is not deleted.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from embedding_assets.errors import TransientError
from embedding_assets.snapshots.keys import document_bucket
from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.snapshots.sqlite_files import sqlite_file
from embedding_assets.sources.documents import Document
from embedding_assets.sources.formats import Kept
from embedding_assets.sources.kept_lines import KeptLines

_SCHEMA_VERSION: Final = 4
"""Goes up whenever a table changes. A catalog of another version is emptied, which costs reading the source once."""

_SCHEMA: Final = """
create table if not exists about (name text primary key, value text not null);
create table if not exists items (name text primary key, mark text) without rowid;
create table if not exists documents (
    item text, position integer, line integer, document_id text not null, bucket integer not null,
    content_hash blob not null, bytes integer not null, text text, metadata text, line_hash blob,
    primary key (item, position)
) without rowid;
create index if not exists documents_by_line on documents (item, line_hash) where line_hash is not null;
create index if not exists documents_by_id on documents (document_id, item, position);
create index if not exists documents_by_bucket on documents (bucket);
create table if not exists rejected (item text, position integer, document_id text, entry text not null);
create index if not exists rejected_by_item on rejected (item);
create table if not exists refused (item text, entry text not null);
create table if not exists dropped (
    document_id text primary key, item text not null, position integer not null, bucket integer not null,
    content_hash blob not null, bytes integer not null
) without rowid;
create index if not exists dropped_by_item on dropped (item);
create temporary table listed (name text primary key) without rowid;
create temporary table unknown (low text primary key, high text not null) without rowid;
create temporary table kept (
    first integer primary key, last integer not null, places integer not null, lines integer not null
);
"""

NOWHERE: Final = ""
"""The item of a document that only the last snapshot tells of."""

# The items, meanwhile, of what an item held before it is read again and holds no more, and of what it holds now. No
# item's name has a control character.
_BEFORE: Final = "\x01"
_NOW: Final = "\x02"

# The classes of what says that there may be more than was read.
_UNREAD: Final = ("unreadable", "unpacks-too-far")
_UNREADABLE: Final = f"json_extract(entry, '$.error_class') in {_UNREAD}"

# A document is the first of its id, by item and then line: the others of that id are rejected as doubled.
_WINNERS = """
from documents as d where not exists (
    select 1 from documents as e
    where e.document_id = d.document_id and (e.item, e.position) < (d.item, d.position))
"""


class Known(NamedTuple):
    """A document of the last snapshot, for a catalog that does not know it."""

    item: str
    """`NOWHERE` if that cannot be told."""
    document_id: str
    content_hash: bytes
    bytes: int
    """Of its text in UTF-8."""


class Gone(NamedTuple):
    """The documents of the last snapshot that the source has no more."""

    number: int
    first: list[str]
    """The first of their ids."""


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

    def reset(self, reader: str, root: str, last: Callable[[], Iterable[Known]]) -> None:
        """Be about this snapshot, whose documents `last` gives, and this reader's version.

        A catalog of another snapshot is emptied, and knows the documents of this one by id and hash. One of another
        reader has every item read again, and every line of it.
        """
        about = dict(self._db.execute("select name, value from about"))
        if about == {"reader": reader, "root": root}:
            return
        with self._db:
            if about.get("root") == root:
                self._db.execute("update items set mark = null")
                self._db.execute("update documents set line_hash = null")
            else:
                for table in ("items", "documents", "rejected", "refused", "dropped"):
                    self._db.execute(f"delete from {table}")  # noqa: S608 - the five names above
                for place, (item, document_id, content_hash, size) in enumerate(last()):
                    self._db.execute("insert or ignore into items values (?, null)", (item,))
                    self._db.execute(
                        "insert into documents values (?, ?, null, ?, ?, ?, ?, null, null, null)",
                        (item, place, document_id, document_bucket(document_id), content_hash, size),
                    )
            self._db.executemany("insert or replace into about values (?, ?)", [("reader", reader), ("root", root)])

    def forget(self) -> None:
        """Be about no snapshot."""
        with self._db:
            self._db.execute("delete from about")

    def holds_what(self, reader: str, root: str) -> bool:
        """Whether it is about this snapshot and this reader's version, and no look since found anything else.

        A snapshot with rejections is none that it can be said of.
        """
        about = dict(self._db.execute("select name, value from about"))
        (more,) = self._db.execute(
            """select exists (select 1 from rejected) or exists (select 1 from refused)
                or exists (select 1 from dropped) or exists (select 1 from documents where item = ?)
                or exists (select 1 from documents where text is not null)""",
            (NOWHERE,),
        ).fetchone()
        return about == {"reader": reader, "root": root} and not more

    def number_of_items(self) -> int:
        """How many items the source had."""
        return int(self._db.execute("select count(*) from items where name <> ?", (NOWHERE,)).fetchone()[0])

    def begin_listing(self) -> None:
        """Nothing is listed or refused so far."""
        with self._db:
            for table in ("listed", "unknown", "refused"):
                self._db.execute(f"delete from {table}")  # noqa: S608 - the three names above

    def list_item(self, name: str) -> None:
        """Note that the source lists an item."""
        self._db.execute("insert or ignore into listed values (?)", (name,))

    def keep(self, name: str) -> None:
        """Keep what is known of an item that cannot be looked at; of everything below it where it ends in `/`."""
        low, high = self._is_unknown(name)
        self._db.execute(
            "insert or ignore into listed select name from items where name >= ? and name < ?", (low, high)
        )
        self._db.execute(f"delete from rejected where item = ? and {_UNREADABLE}", (name,))  # noqa: S608

    def refuse(self, thing: RejectedDocument) -> None:
        """Note what the listing itself had to refuse."""
        self._db.execute("insert into refused values (?, ?)", (thing.item, thing.model_dump_json()))

    def end_listing(self) -> None:
        """Forget every item that is no longer listed, and take back what is not known to be gone.

        A document whose item cannot be told stays while any item cannot be read: it may be of that.
        """
        with self._db:
            (all_is_known,) = self._db.execute("select not exists (select 1 from unknown)").fetchone()
            if not all_is_known:
                self._is_unknown(NOWHERE)
            self._drop(
                """item = ? and (? or exists (
                    select 1 from documents as e where e.document_id = documents.document_id and e.item <> ?))""",
                (NOWHERE, all_is_known, NOWHERE),
            )
            self.list_item(NOWHERE)
            unlisted = "(select name from items where name not in (select name from listed))"
            self._drop(f"item in {unlisted}")
            self._db.execute(f"delete from rejected where item in {unlisted}")  # noqa: S608
            self._db.execute(f"delete from items where name in {unlisted}")  # noqa: S608
            self._take_back()

    def unchanged(self, name: str, mark: str) -> bool:
        """Whether an item looks as it did when it was read."""
        return self._db.execute("select 1 from items where (name, mark) = (?, ?)", (name, mark)).fetchone() is not None

    def replace(
        self, name: str, mark: str | None, read: Callable[[Kept], Iterable[Document | RejectedDocument]]
    ) -> None:
        """Put what an item holds now in place of what it held, all or nothing.

        `read` gives it in order, but for the lines that it is told are kept. Where the item could not be read, or not
        to its end, what it held stays but for what was read. Such an item, and one without a mark since that says
        nothing yet, is read again at the next look.
        """
        unread_from: int | None = None
        with self._db:
            self._db.execute("update rejected set item = ? where item = ?", (_BEFORE, name))
            lines = KeptLines(self._db, name)
            for thing in read(lines.kept):
                place = lines.next_place()
                if isinstance(thing, Document):
                    self._insert(name, place, thing)
                    continue
                self._reject(thing)
                if thing.error_class in _UNREAD:
                    unread_from = thing.position or 0
            lines.part(_BEFORE, _NOW)
            self._db.execute("update documents set item = ? where item = ?", (name, _NOW))
            if unread_from is not None:
                self._is_unknown(name)
                self._keep_the_rest(name, lines.next_place(), unread_from)
                mark = None
            self._db.execute("insert or replace into items values (?, ?)", (name, mark))
            self._drop("item = ?", (_BEFORE,), item=name)
            self._db.execute("delete from rejected where item = ?", (_BEFORE,))

    def _insert(self, name: str, place: int, found: Document) -> None:
        # What the last snapshot has needs no second copy here: a look at everything again costs no disk.
        # By its id, said to SQLite: it took the rows of the item one by one, 54 s for a file of 20,000 lines.
        stored = self._db.execute(
            """select 1 from documents indexed by documents_by_id
               where document_id = ? and item = ? and content_hash = ? and text is null""",
            (found.document_id, name, found.content_hash),
        ).fetchone()
        self._db.execute(
            "insert into documents values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                _NOW,
                place,
                found.position,
                found.document_id,
                document_bucket(found.document_id),
                found.content_hash,
                len(found.text.encode()),
                None if stored else found.text,
                None if stored else found.metadata_json,
                found.line_hash,
            ),
        )

    def _keep_the_rest(self, name: str, places: int, unread_from: int) -> None:
        """Give an item that was read up to a line back what it held, but for the documents just read."""
        self._drop(
            """item = ? and exists (
                select 1 from documents as e where e.document_id = documents.document_id and e.item = ?)""",
            (_BEFORE, name),
            item=name,
        )
        self._db.execute(
            "update documents set item = ?, position = position + ? where item = ?", (name, places, _BEFORE)
        )
        self._db.execute(
            f"""update rejected set item = ?
                where item = ? and not {_UNREADABLE} and coalesce(position, ?) >= ?""",  # noqa: S608
            (name, _BEFORE, unread_from, unread_from),
        )

    def gone(self) -> Gone:
        """The documents of the last snapshot that the looks since then found no more."""
        gone = """from dropped where not exists (
            select 1 from documents where documents.document_id = dropped.document_id)"""
        (count,) = self._db.execute(f"select count(*) {gone}").fetchone()
        first = self._db.execute(f"select document_id {gone} order by document_id limit 3").fetchall()
        return Gone(count, [document_id for (document_id,) in first])

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
        rows = self._db.execute(
            f"select d.document_id, d.content_hash, d.text, d.metadata {_WINNERS} "
            "and d.bucket >= ? and d.bucket < ? order by d.document_id",
            (low, high),
        )
        return [Row(*row) for row in rows]

    def committed(self, root: str) -> None:
        """The documents are in the parts of this snapshot now: keep what was seen, drop the texts.

        The text of a document that lost to another of its id is kept: it stands once the other is gone.
        """
        with self._db:
            self._db.execute(
                f"""update documents as w set text = null, metadata = null
                    where w.text is not null and (w.item, w.position) in (select d.item, d.position {_WINNERS})"""  # noqa: S608
            )
            self._db.execute("delete from dropped")
            self._db.execute("update about set value = ? where name = 'root'", (root,))

    def _is_unknown(self, name: str) -> tuple[str, str]:
        """Note that an item, or everything below a folder, cannot be read; the range of names that this is about."""
        # No name has a control character, so that the second range has this one name.
        high = name[:-1] + chr(ord("/") + 1) if name.endswith("/") else name + "\x01"
        self._db.execute("insert or ignore into unknown values (?, ?)", (name, high))
        return name, high

    def _drop(self, which: str, values: Sequence[object] = (), *, item: str | None = None) -> None:
        """Delete documents, and remember those of the last snapshot: this look may be stopped, and another follow.

        `item` is theirs where they are under another name for the time.
        """
        self._db.execute(
            f"""insert or ignore into dropped
                select document_id, coalesce(?, item), position, bucket, content_hash, bytes
                from documents where text is null and ({which})""",  # noqa: S608
            (item, *values),
        )
        self._db.execute(f"delete from documents where {which}", values)  # noqa: S608

    def _take_back(self) -> None:
        """Have the dropped documents of unknown items again, but for those whose ids are elsewhere by now."""
        back = """
            from unknown join dropped as d on d.item >= unknown.low and d.item < unknown.high
            where not exists (select 1 from documents as e where e.document_id = d.document_id)"""
        self._db.execute(f"insert or ignore into items select distinct d.item, null {back}")
        self._db.execute(
            f"""insert into documents
                select d.item,
                    (select coalesce(max(e.position), -1) from documents as e where e.item = d.item)
                        + row_number() over (partition by d.item order by d.position, d.document_id),
                    null, d.document_id, d.bucket, d.content_hash, d.bytes, null, null, null
                {back}"""  # noqa: S608
        )

    def _reject(self, thing: RejectedDocument) -> None:
        self._db.execute(
            "insert into rejected values (?, ?, ?, ?)",
            (thing.item, thing.position, thing.document_id, thing.model_dump_json()),
        )


@contextmanager
def open_catalog(path: Path) -> Iterator[Catalog]:
    """The catalog in this file, which is made if it is not there.

    Raises:
        TransientError: as `sqlite_file`.
    """
    with sqlite_file(path, "the source is read anew") as connection:
        connection.execute("pragma journal_mode = wal")
        # A power cut may cost the last items, which are read again; waiting for the disk at each of 10,000 took 50 s.
        connection.execute("pragma synchronous = normal")
        if connection.execute("pragma user_version").fetchone() != (_SCHEMA_VERSION,):
            # Of another version of the schema: the next look fills it.
            for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
                connection.execute(f'drop table "{table}"')
            connection.execute(f"pragma user_version = {_SCHEMA_VERSION}")
        connection.executescript(_SCHEMA)
        yield Catalog(connection)


def shard_rows(path: Path, shard: int, bits: int) -> list[Row]:
    """The documents of a shard out of 2**bits, by id, as the catalog in this file has them. Nothing is written.

    Raises:
        TransientError: there is no such file on this machine; or as `sqlite_file`.
    """
    if not path.exists():
        raise TransientError(f"{path}: there is no catalog. Cure: do it on the machine that looked at the source.")
    with sqlite_file(path, "the source is read anew") as connection:
        return Catalog(connection).rows(shard, bits)
