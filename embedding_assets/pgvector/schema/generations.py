"""Generations as a region's database has them: which there are, what each was loaded from, and dropping one."""

from typing import NamedTuple

from psycopg import sql

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.locks import short_transaction
from embedding_assets.pgvector.rows.vector_types import VectorType
from embedding_assets.pgvector.schema.names import generation_table, lexemes_table, words_table
from embedding_assets.snapshots.slots import Slot, column_of


class Generation(NamedTuple):
    """A source's table in a region, by what was loaded into it: `target_root`.

    Of a published one that is empty where the table no longer holds what was loaded, and names no root while a delta
    replaces its shards. `rows_changed` counts what deltas inserted, updated and deleted since.
    """

    id: int
    source: str
    target_root: str
    state: str
    rows_changed: int = 0


def find_generation(conn: Connection, source: str, target_root: str) -> Generation | None:
    """The generation of a source that holds this root, published or not."""
    row = conn.execute(
        """
        SELECT id, source, target_root, state, rows_changed FROM embedding_assets.generations
        WHERE source = %s AND target_root = %s AND state <> 'retired'
        ORDER BY state = 'published' DESC, id DESC LIMIT 1
        """,
        [source, target_root],
    ).fetchone()
    return Generation(*row) if row else None


def published_generation(conn: Connection, source: str) -> Generation | None:
    """The generation of a source that readers see."""
    row = conn.execute(
        "SELECT id, source, target_root, state, rows_changed FROM embedding_assets.generations "
        "WHERE source = %s AND state = 'published'",
        [source],
    ).fetchone()
    return Generation(*row) if row else None


def drop_generation(conn: Connection, generation: int) -> None:
    """Drop a generation that is not attached: its table and all records of it."""

    def drop() -> None:
        drop_tables(conn, generation)
        conn.execute("DELETE FROM embedding_assets.generations WHERE id = %s", [generation])

    short_transaction(conn, f"dropping generation {generation}", drop)


def drop_tables(conn: Connection, generation: int) -> None:
    """Drop the tables of a generation, within a transaction: the chunks' first, as publishing locks them."""
    for table in (generation_table, words_table, lexemes_table):
        conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table(generation)))


def ledger_keys(conn: Connection, generation: Generation) -> dict[int, str]:
    """The shards of a generation by the ledger, and the key that each was loaded from."""
    rows = conn.execute("SELECT shard, key FROM embedding_assets.ledger WHERE generation = %s", [generation.id])
    return dict(rows.fetchall())


def column_type(conn: Connection, generation: Generation, slot: Slot) -> VectorType:
    """The type of a slot's column in a generation's table."""
    row = conn.execute(
        """
        SELECT typname, atttypmod FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
        WHERE attrelid = to_regclass(%s) AND attname = %s
        """,
        [generation_table(generation.id).as_string(conn), column_of(slot)],
    ).fetchone()
    assert row is not None
    return VectorType(*row)
