"""What reaches this package: the rows of one shard, as Arrow tables."""

from collections.abc import Callable
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.rows.vector_types import EMPTY
from embedding_assets.snapshots.schemas import vectors
from embedding_assets.snapshots.slots import SLOTS

_MAKE_ANEW: Final = "Cure: embedding-assets verify --repair, then embedding-assets materialize"


class ShardRef(NamedTuple):
    """A shard of a source's snapshots: its number, a hex digest that names its content, and its rows."""

    shard: int
    key: str
    rows: int


class ShardRows(NamedTuple):
    """The rows of a shard: `chunks` (CHUNKS), and the vectors of each slot (vectors(d)), in the order of SLOTS; all
    aligned row for row by `chunk_id`. An empty slot has `no_vectors`."""

    chunks: pa.Table
    vectors: tuple[pa.Table, ...]

    def each(self, change: Callable[[pa.Table], pa.Table]) -> "ShardRows":
        """The same change, made to every table."""
        return ShardRows(change(self.chunks), tuple(map(change, self.vectors)))


ReadShard = Callable[[ShardRef], ShardRows]


class ShardChange(NamedTuple):
    """What made a shard of what it was: rows that are new or changed, among which may be some that are as they were,
    and the ids of chunks that are gone, (m,), among which may be some that never were."""

    rows: ShardRows
    gone: pa.FixedSizeBinaryArray


ReadChange = Callable[[ShardRef, str], ShardChange | None]
"""What made a shard of what had another key; None where that cannot be told."""


def no_change_known(ref: ShardRef, key: str) -> None:
    """Of no shard can be told what made it of what it was."""


def dimensions_of(table: pa.Table) -> int:
    """Dimensions of a `vectors(d)` table."""
    return int(table.schema.field("embedding").type.byte_width) // 4


def no_vectors(chunks: pa.Table) -> pa.Table:
    """What an empty slot has for these chunks: a NULL each, as a `vectors(d)` table of `EMPTY`'s dimensions."""
    n, schema = chunks.num_rows, vectors(EMPTY.dimensions)
    columns = [chunks.column("chunk_id"), chunks.column("text_hash")]
    return pa.table(
        [*columns, *(pa.nulls(n, schema.field(name).type) for name in ("embedding", "vector_hash"))], schema
    )


def check_aligned(rows: ShardRows, ref: ShardRef) -> None:
    """Raise PermanentError unless the three tables hold the same chunks in the same order, as many as `ref` says, and
    none of them twice."""
    chunk_ids = rows.chunks.column("chunk_id")
    if len(chunk_ids) != ref.rows:
        raise PermanentError(
            f"shard {ref.shard} ({ref.key}) has {len(chunk_ids)} chunks where its snapshot says {ref.rows}: the parts "
            f"do not belong to the snapshot. {_MAKE_ANEW}"
        )
    if pc.count_distinct(chunk_ids).as_py() != len(chunk_ids):
        raise PermanentError(f"shard {ref.shard} ({ref.key}) has a chunk twice. {_MAKE_ANEW}")
    for slot, table in zip(SLOTS, rows.vectors, strict=True):
        if not table.column("chunk_id").equals(chunk_ids):
            raise PermanentError(
                f"shard {ref.shard} ({ref.key}): the vectors of {slot} are not row for row those of the chunks. "
                f"{_MAKE_ANEW}"
            )
