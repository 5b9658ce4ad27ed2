"""The chunks stage: documents of a shard in, chunks of the shard out."""

import hashlib
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from embedding_assets.chunking.spans import split
from embedding_assets.snapshots.binary import chunk_hashes
from embedding_assets.snapshots.schemas import CHUNKS

STAGE_VERSION: Final = "chunks-1"
"""Part of every chunks part's key: to be raised with any change that moves a cut, an id or a hash."""


def chunk_documents(source: str, documents: pa.Table, *, max_tokens: int, overlap: int) -> pa.Table:
    """The chunks of `documents` (schema DOCUMENTS, in any order), as schema CHUNKS.

    Rows are in the order of (`document_id` by its UTF-8 bytes, `ordinal`). A blank document has none. `chunk_id`
    is a hash of (source, `document_id`, `ordinal`), so that a chunk whose text changed keeps its row.

    Raises PermanentError if `max_tokens` and `overlap` do not go together (`spans.split`).
    """
    columns: dict[str, list[object]] = {name: [] for name in CHUNKS.names}
    for row in pc.sort_indices(documents["document_id"]).to_pylist():
        document_id, text = documents["document_id"][row].as_py(), documents["text"][row].as_py()
        spans = split(text, max_tokens=max_tokens, overlap=overlap)
        texts = [text[start:end] for start, end, _ in spans]
        columns["chunk_id"] += _chunk_ids(source, document_id, len(spans))
        columns["document_id"] += [document_id] * len(spans)
        columns["ordinal"] += range(len(spans))
        columns["start"] += [span.start for span in spans]
        columns["end"] += [span.end for span in spans]
        columns["tokens"] += [span.tokens for span in spans]
        columns["text"] += texts
        columns["text_hash"] += [hashlib.sha256(chunk.encode()).digest() for chunk in texts]
        columns["metadata"] += [documents["metadata"][row].as_py()] * len(spans)
    columns["chunk_hash"] += chunk_hashes(columns)
    return pa.table(columns, schema=CHUNKS)


def _chunk_ids(source: str, document_id: str, count: int) -> list[bytes]:
    """UUIDs (RFC 9562, version 8) from SHA-256 over lengths and bytes, so that no two triples read alike."""
    document = hashlib.sha256()
    for part in (source.encode(), document_id.encode()):
        document.update(len(part).to_bytes(8, "big") + part)
    ids = []
    for ordinal in range(count):
        digest = document.copy()
        digest.update(ordinal.to_bytes(8, "big"))
        uuid = bytearray(digest.digest()[:16])
        uuid[6] = uuid[6] & 0x0F | 0x80
        uuid[8] = uuid[8] & 0x3F | 0x80
        ids.append(bytes(uuid))
    return ids
