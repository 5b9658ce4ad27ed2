"""The rows of a part, from the layers that it is stored as.

A row of a layer is hidden where a later layer has one of the same name, which is its first column, or says that it is
gone. What is left, in the order of its stage, is row for row the base that a first run would write. Memory is that of a
shard.
"""

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from embedding_assets.snapshots.layers import Rows, read_layer
from embedding_assets.snapshots.snapshot import Layer, Part
from embedding_assets.snapshots.stores import Store

_ORDER: Final = ("document_id", "ordinal")
"""Rows are in the order of those of these columns that they have. Vectors have neither, and are taken by `chunk_id`."""


def read_part(store: Store, source: str, part: Part, columns: Sequence[str] | None = None) -> pa.Table:
    """A part's rows, verified against the snapshot's hashes; columns that not all layers have are left out.

    Raises:
        LayerDamaged: a layer is missing, or has other bytes than recorded.
    """
    return read_layers(store, source, part.layers, columns).table


def read_layers(store: Store, source: str, layers: Sequence[Layer], columns: Sequence[str] | None = None) -> Rows:
    """What layers that follow each other come to. Raises as `read_part`."""
    if len(layers) == 1:
        return read_layer(store, source, layers[0], columns)
    wanted = None if columns is None else list(dict.fromkeys([*_ORDER, *columns]))
    return merged([read_layer(store, source, layer, wanted) for layer in layers], columns)


def merged(layers: Sequence[Rows], columns: Sequence[str] | None = None) -> Rows:
    """The rows of layers, the lowest first, as one layer would have them; of their columns these alone."""
    kind = layers[0].names.type
    hidden = pa.array([], kind)
    tables: list[pa.Table] = []
    names: list[pa.ChunkedArray] = []
    for rows in reversed(layers):
        seen = pc.invert(pc.is_in(rows.names, value_set=hidden))
        tables.insert(0, rows.table.filter(seen))
        names.insert(0, rows.names.filter(seen))
        hidden = pa.concat_arrays([hidden, *rows.names.chunks, rows.gone])
    # Parts of older versions lack columns of hashes, which whoever needs them computes.
    held = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
    table = pa.concat_tables(table.select(held) for table in tables)
    name = pa.chunked_array([chunk for column in names for chunk in column.chunks], kind)
    if order := [(column, "ascending") for column in _ORDER if column in held]:
        places = pc.sort_indices(table, order)
        table, name = table.take(places), name.take(places)
    gone = pa.concat_arrays([rows.gone for rows in layers]).unique()
    return Rows(
        table if columns is None else table.select([column for column in columns if column in held]),
        name,
        gone.filter(pc.invert(pc.is_in(gone, value_set=name))),
    )


def aligned(rows: Rows, names: pa.ChunkedArray) -> pa.Table:
    """The rows of these names, in their order; one that is not there has nulls."""
    return rows.table.take(pc.index_in(names, value_set=rows.names))
