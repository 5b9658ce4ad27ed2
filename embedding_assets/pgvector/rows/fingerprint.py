"""The content fingerprint of a shard: the same number by NumPy from its rows and by SQL from a table.

It is the sum, modulo 2⁶⁴, of its rows' digests (`copy.digests_of`). A sum does not depend on order, so tables need not
be sorted; unlike XOR it notices a row that is there twice. A digest covers every field, and is made of the hashes that
parts bring along; SQL makes these from what is stored. Metadata is hashed as it stands in the part, which is the text
that `jsonb` gives back.

Rows have their digest stored beside them. It tells cheaply what differs, and proves nothing of what a row holds now:
that is hashed again in SQL wherever rows were written, and by `embedding-assets verify`.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt
from psycopg import sql

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.rows.copy import digests_of
from embedding_assets.pgvector.rows.shards import ShardRows
from embedding_assets.pgvector.rows.vector_types import VectorType, VectorTypes
from embedding_assets.snapshots.slots import SLOTS, Slot, column_of

NORM_TOLERANCE: Final = 1e-3
"""float32 unit vectors are within 1e-6 of length 1 and 2-byte floats within 5e-4: more is somebody's change."""

_MODULUS: Final = 1 << 64


class Fingerprint(NamedTuple):
    """Rows of a shard, and the digest of their content (16 hexadecimal digits)."""

    rows: int
    digest: str


class Content(NamedTuple):
    """What the rows of a shard hold in a table: their fingerprint, hashed from every byte; how many have another digest
    stored than their own, and how many have a vector whose length is not 1 within `NORM_TOLERANCE`."""

    fingerprint: Fingerprint
    misdigested: int
    misnormed: int


NOTHING: Final = Fingerprint(0, "0" * 16)
"""The fingerprint of a shard without rows."""

NO_CONTENT: Final = Content(NOTHING, 0, 0)
"""What a shard without rows holds."""


def of_rows(rows: ShardRows, types: VectorTypes) -> Fingerprint:
    """The fingerprint of a shard's rows in columns of these types, whatever their order."""
    return of_digests(digests_of(rows, types))


def of_digests(digests: npt.NDArray[np.int64]) -> Fingerprint:
    """The fingerprint of rows with these digests."""
    return Fingerprint(len(digests), digest_of(int(digests.view(np.uint64).sum())))


def digest_of(total: int) -> str:
    """A sum, of either sign, as it is stored and compared."""
    return f"{total % _MODULUS:016x}"


class Pages(NamedTuple):
    """Pages of a table, `end` not among them; to its end where that is None."""

    first: int = 0
    end: int | None = None


ALL_PAGES: Final = Pages()


def of_table(
    conn: Connection, table: sql.Composable, types: VectorTypes, pages: Pages = ALL_PAGES
) -> dict[int, Content]:
    """What each shard holds in these pages of a generation's table, whose vectors are of these types.

    Reads every byte of them.
    """
    statement = sql.SQL(
        """
        SELECT shard, count(*), sum(actual),
               count(*) FILTER (WHERE digest IS DISTINCT FROM actual), count(*) FILTER (WHERE NOT ({normed}))
        FROM {table}, LATERAL (SELECT {actual} AS actual OFFSET 0) AS hashed -- OFFSET 0: hashed once, not thrice
        WHERE {within}
        GROUP BY shard
        """
    ).format(table=table, actual=_actual(types), normed=_normed(types), within=_within(pages))
    return {
        shard: Content(Fingerprint(rows, digest_of(int(total))), misdigested, misnormed)
        for shard, rows, total, misdigested, misnormed in conn.execute(statement)
    }


def by_digests_since(conn: Connection, table: sql.Composable, transaction: str) -> dict[int, Content] | None:
    """What each shard holds by the digests that are stored; None where a row was written by this transaction or a later
    one, for whose content its digest is no proof. Reads the rows, and hashes none.
    """
    statement = sql.SQL(
        """
        SELECT shard, count(*), coalesce(sum(digest), 0), count(*) FILTER (WHERE age(xmin) <= age(%s::text::xid))
        FROM {} GROUP BY shard
        """
    )
    found = conn.execute(statement.format(table), [transaction]).fetchall()
    if any(written for *_, written in found):
        return None
    return {shard: Content(Fingerprint(rows, digest_of(int(total))), 0, 0) for shard, rows, total, _ in found}


def together(some: Mapping[int, Content], more: Mapping[int, Content]) -> dict[int, Content]:
    """What each shard holds in two parts of a table that have no page in common."""
    return {
        shard: _sum(some.get(shard, NO_CONTENT), more.get(shard, NO_CONTENT)) for shard in some.keys() | more.keys()
    }


def _sum(one: Content, other: Content) -> Content:
    total = int(one.fingerprint.digest, 16) + int(other.fingerprint.digest, 16)
    return Content(
        Fingerprint(one.fingerprint.rows + other.fingerprint.rows, digest_of(total)),
        one.misdigested + other.misdigested,
        one.misnormed + other.misnormed,
    )


def by_digests(conn: Connection, table: sql.Composable, shard: int) -> Fingerprint:
    """The fingerprint of a shard in a generation's table by the digests that it has stored; reads the index alone."""
    row = conn.execute(
        sql.SQL("SELECT count(*), coalesce(sum(digest), 0) FROM {} WHERE shard = %s").format(table), [shard]
    ).fetchone()
    assert row is not None
    return Fingerprint(row[0], digest_of(int(row[1])))


def count_sound(conn: Connection, table: sql.Composable, types: VectorTypes, chunk_ids: Sequence[UUID]) -> int:
    """How many of these rows are in the table with the digest that their content gives, and with unit vectors."""
    row = conn.execute(
        sql.SQL("SELECT count(*) FROM {} WHERE chunk_id = ANY (%s) AND digest = {} AND {}").format(
            table, _actual(types), _normed(types)
        ),
        [chunk_ids],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _actual(types: VectorTypes) -> sql.Composed:
    """The digest of a row, from its content."""
    chunk = sql.SQL(
        """sha256(uuid_send(chunk_id) || int4send(ordinal) || int4send(start_offset) || int4send(end_offset)
                  || sha256(convert_to(content, 'UTF8'))
                  || int4send(octet_length(document_id)) || convert_to(document_id, 'UTF8')
                  || convert_to(metadata::text, 'UTF8'))"""
    )
    hashes = [chunk, *(_vector_hash(slot, each) for slot, each in zip(SLOTS, types, strict=True))]
    return sql.SQL("({})").format(sql.SQL(" # ").join(_word(each, place) for place, each in enumerate(hashes)))


def _within(pages: Pages) -> sql.Composed:
    """Whether a row lies in these pages."""
    bounds = [sql.SQL("ctid >= {}::tid").format(f"({pages.first},0)")]
    if pages.end is not None:
        bounds.append(sql.SQL("ctid < {}::tid").format(f"({pages.end},0)"))
    return sql.SQL(" AND ").join(bounds)


def _normed(types: VectorTypes) -> sql.Composed:
    """Whether each vector of a row that is there has unit length."""
    return sql.SQL(" AND ").join(
        sql.SQL("coalesce(abs({norm}({column}) - 1) <= {tolerance}, true)").format(
            norm=sql.SQL("vector_norm" if each.name == "vector" else "l2_norm"),
            column=sql.Identifier(column_of(slot)),
            tolerance=NORM_TOLERANCE,
        )
        for slot, each in zip(SLOTS, types, strict=True)
    )


def _vector_hash(slot: Slot, each: VectorType) -> sql.Composed:
    return sql.SQL("sha256({send}({column}))").format(
        send=sql.SQL("vector_send" if each.name == "vector" else "halfvec_send"),
        column=sql.Identifier(column_of(slot)),
    )


def _word(hashed: sql.Composable, place: int) -> sql.Composed:
    """Eight bytes of a hash as bigint; 0 for NULL."""
    return sql.SQL("coalesce(('x' || encode(substr({hashed}, {start}, 8), 'hex'))::bit(64)::bigint, 0)").format(
        hashed=hashed, start=8 * place + 1
    )
