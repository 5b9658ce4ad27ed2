"""Exact nearest neighbours of many queries, by one reading of the table: what an index's answers are compared with.

Asked of Postgres a query at a time, each reads the whole table. Here all vectors are read once, and compared in blocks.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt
from psycopg import sql

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.rows.copy import HEADER, TRAILER
from embedding_assets.pgvector.schema.generations import Generation, column_type
from embedding_assets.pgvector.schema.names import generation_table
from embedding_assets.snapshots.slots import Slot, column_of

_BLOCK_BYTES: Final = 8 << 20
_BLOCK_ROWS: Final = 8_192  # of short vectors: the distances to each query take memory, too


class Neighbour(NamedTuple):
    """A chunk, and its cosine distance from the query."""

    chunk_id: UUID
    distance: float


def nearest(
    conn: Connection, generation: Generation, slot: Slot, queries: npt.NDArray[np.float32], count: int
) -> tuple[int, list[list[Neighbour]]]:
    """How many vectors a slot has, and of these the `count` nearest to each query ((n, d) float32), nearest first.

    Distances are pgvector's to within 1e-6. Reads the table once; takes some 50 MB, whatever its size.
    """
    kind, dimensions = column_type(conn, generation, slot)
    stored = np.dtype(">f4" if kind == "vector" else ">f2")
    # As pgvector compares them: a query has the column's type.
    unit_queries = queries.astype(stored.newbyteorder("=")).astype(np.float32)
    unit_queries /= np.linalg.norm(unit_queries, axis=1, keepdims=True)
    ids = np.zeros((len(queries), 0), "V16")
    distances = np.zeros((len(queries), 0), np.float32)
    vectors_read = 0
    for rows in _blocks(conn, generation, slot, stored, dimensions):
        vectors = rows["vector"].astype(np.float32)
        vectors_read += len(vectors)
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # a vector of zeros has no distance: it is nobody's nearest
            block_distances = 1 - (unit_queries @ vectors.T) / np.linalg.norm(vectors, axis=1)
        block_distances = np.where(np.isfinite(block_distances), block_distances, np.float32(2))
        kept = min(count, block_distances.shape[1])
        places = np.argpartition(block_distances, kept - 1, axis=1)[:, :kept]
        ids = np.concatenate((ids, rows["id"][places]), axis=1)
        distances = np.concatenate((distances, np.take_along_axis(block_distances, places, axis=1)), axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        ids, distances = np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
    return vectors_read, [
        [Neighbour(UUID(bytes=bytes(chunk_id)), float(distance)) for chunk_id, distance in zip(*one, strict=True)]
        for one in zip(ids, distances, strict=True)
    ]


def _blocks(
    conn: Connection, generation: Generation, slot: Slot, stored: np.dtype[Any], dimensions: int
) -> Iterator[npt.NDArray[Any]]:
    """The ids and vectors of a slot that are there, in blocks of records: `id` and `vector`."""
    # A row of Postgres' binary COPY, and in it pgvector's binary form: its dimensions and two bytes of nothing first.
    record = np.dtype(
        [
            ("fields", ">i2"),
            ("id_len", ">i4"),
            ("id", "V16"),
            ("vector_len", ">i4"),
            ("dimensions", ">i4"),
            ("vector", stored, (dimensions,)),
        ]
    )
    at_once = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // record.itemsize)) * record.itemsize
    statement = sql.SQL("COPY (SELECT chunk_id, {0} FROM {1} WHERE {0} IS NOT NULL) TO STDOUT (FORMAT binary)").format(
        sql.Identifier(column_of(slot)), generation_table(generation.id)
    )
    rest = bytearray()
    with conn.cursor().copy(statement) as copy:
        for piece in copy:
            rest += piece
            if len(rest) >= len(HEADER) + at_once:
                del rest[: len(HEADER) if rest.startswith(HEADER) else 0]
                whole = len(rest) // record.itemsize * record.itemsize
                yield np.frombuffer(bytes(rest[:whole]), record)
                del rest[:whole]
    last = bytes(rest).removeprefix(HEADER).removesuffix(TRAILER)
    if last:
        yield np.frombuffer(last, record)
