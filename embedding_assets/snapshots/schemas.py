"""The columns of every stage's parts: the contract between the stages, and with anyone who opens the files.

Parts are Parquet. Within a shard the rows of `chunks`, `embeddings_v1` and `embeddings_v2` are aligned: same order,
same `chunk_id` column.
"""

from typing import Final

import pyarrow as pa

HASH: Final = pa.binary(32)  # SHA-256
CHUNK_ID: Final = pa.binary(16)  # a UUID's bytes

DOCUMENTS: Final = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),  # canonical JSON object
        pa.field("content_hash", HASH, nullable=False),
    ]
)
"""Documents of one shard, by `document_id` (UTF-8 byte order)."""

CHUNKS: Final = pa.schema(
    [
        pa.field("chunk_id", CHUNK_ID, nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),  # offsets in characters (code points) of the document's text
        pa.field("end", pa.int32(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),  # cl100k_base
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_hash", HASH, nullable=False),
        pa.field("metadata", pa.string(), nullable=False),  # the document's
        pa.field("chunk_hash", HASH, nullable=False),
    ]
)
"""Chunks of one shard, by (`document_id`, `ordinal`).

`chunk_hash` covers what a region's table holds of the chunk besides its vectors (`binary.chunk_hashes`), so that no
loader has to hash that again. Parts from before it was written lack the column.
"""


def vectors(dimensions: int) -> pa.Schema:
    """Vectors of one shard, row for row those of its chunks part.

    `embedding` is `dimensions` little-endian float32 of unit length; null where the chunk's vector is dead-lettered.
    `vector_hash` is the SHA-256 of the vector in pgvector's binary form (`binary.binary_vectors`), so that no loader in
    any region has to hash it again; null with it. Parts from before it was written lack the column.
    """
    return pa.schema(
        [
            pa.field("chunk_id", CHUNK_ID, nullable=False),
            pa.field("text_hash", HASH, nullable=False),
            pa.field("embedding", pa.binary(4 * dimensions), nullable=True),
            pa.field("vector_hash", HASH, nullable=True),
        ]
    )
