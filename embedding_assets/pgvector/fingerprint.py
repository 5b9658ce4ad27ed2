"""The content fingerprint of a shard: the same number by NumPy from its rows and by SQL from a table.

It is the sum, modulo 2⁶⁴, of the first eight bytes of SHA-256 over each row. A sum does not depend on order, so tables
need not be sorted; unlike XOR it notices a row that is there twice. The bytes hashed are the row's fields in binary
COPY's form, from `chunk_id` on: each with its length before it, NULL as length -1, so that no two rows can be confused.
Metadata is hashed as it stands in the part, which is the text that `jsonb` gives back.
"""

from collections.abc import Iterable
from hashlib import sha256
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from psycopg import sql

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.copy import CONTENT_START, Block, encode
from embedding_assets.pgvector.shards import SLOTS, ShardRows, column_type

_MODULUS: Final = 1 << 64


class Fingerprint(NamedTuple):
    """Rows of a shard, and the digest of their content (16 hexadecimal digits)."""

    rows: int
    digest: str


NOTHING: Final = Fingerprint(0, "0" * 16)
"""The fingerprint of a shard without rows."""


def of_rows(rows: ShardRows) -> Fingerprint:
    """The fingerprint of a shard's rows, whatever their order."""
    return of_blocks(encode(rows, shard=0))


def of_blocks(blocks: Iterable[Block]) -> Fingerprint:
    """The fingerprint of encoded rows."""
    rows, total = 0, 0
    for block in blocks:
        rows, total = rows + len(block.offsets) - 1, total + sum_of(block)
    return Fingerprint(rows, digest_of(total))


def sum_of(block: Block) -> int:
    """What a block adds to its shard's sum."""
    data, offsets = block.data, block.offsets.tolist()
    digests = [sha256(data[start + CONTENT_START : end]).digest()[:8] for start, end in pairwise(offsets)]
    return int(np.frombuffer(b"".join(digests), ">u8").sum(dtype=np.uint64))


def digest_of(total: int) -> str:
    """A sum, of either sign, as it is stored and compared."""
    return f"{total % _MODULUS:016x}"


def of_table(conn: Connection, table: sql.Composable, dimensions: tuple[int, int]) -> dict[int, Fingerprint]:
    """The fingerprint of each shard in a generation's table, whose models have these dimensions (v1, v2)."""
    return {
        shard: Fingerprint(rows, digest_of(int(total)))
        for shard, rows, total in conn.execute(_query(table, dimensions))
    }


def _query(table: sql.Composable, dimensions: tuple[int, int]) -> sql.Composed:
    vectors = [_vector(slot, dims) for slot, dims in zip(SLOTS, dimensions, strict=True)]
    return sql.SQL(
        """
        SELECT shard, count(*), sum(('x' || left(encode(sha256(
                   '\\x00000010'::bytea || uuid_send(chunk_id)
                   || int4send(octet_length(document_id)) || convert_to(document_id, 'UTF8')
                   || '\\x00000004'::bytea || int4send(ordinal)
                   || '\\x00000004'::bytea || int4send(start_offset)
                   || '\\x00000004'::bytea || int4send(end_offset)
                   || int4send(octet_length(content)) || convert_to(content, 'UTF8')
                   || int4send(octet_length(metadata::text) + 1) || '\\x01'::bytea || convert_to(metadata::text, 'UTF8')
                   || {vectors}
               ), 'hex'), 16))::bit(64)::bigint)
        FROM {table}
        GROUP BY shard
        """
    ).format(vectors=sql.SQL(" || ").join(vectors), table=table)


def _vector(slot: str, dimensions: int) -> sql.Composed:
    kind = column_type(dimensions)
    length = 4 + dimensions * (4 if kind == "vector" else 2)
    return sql.SQL("coalesce({length}::bytea || {send}({column}), '\\xffffffff'::bytea)").format(
        length=sql.Literal("\\x" + length.to_bytes(4, "big").hex()),
        send=sql.SQL("vector_send" if kind == "vector" else "halfvec_send"),
        column=sql.Identifier(f"embedding_{slot}"),
    )
