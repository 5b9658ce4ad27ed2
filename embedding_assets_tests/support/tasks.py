"""Tasks of both kinds that workers behind a broker do."""

import hashlib

import pyarrow as pa

from embedding_assets.chunking.options import Chunking
from embedding_assets.chunking.stage import ChunkTask
from embedding_assets.snapshots.derivation import Growth
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import write_layer
from embedding_assets.snapshots.replication import CopyTask
from embedding_assets.snapshots.schemas import DOCUMENTS
from embedding_assets.snapshots.snapshot import Layer, Part
from embedding_assets.snapshots.stores import Store

SOURCE = "docs"


def _layer(store: Store, shard: int, words: int) -> Layer:
    text = f"Shard {shard} says: " + "word after word, " * words
    rows = [pa.array([value], field.type) for value, field in zip(_row(shard, text), DOCUMENTS, strict=True)]
    table = pa.table(rows, schema=DOCUMENTS)
    key = part_key("raw_docs", "1", [str(shard)])
    return write_layer(store, table, asset="raw_docs", source=SOURCE, shard=shard, key=key)


def _row(shard: int, text: str) -> tuple[str, str, str, bytes]:
    return f"{shard}.md", text, "{}", hashlib.sha256(text.encode()).digest()


def chunk_tasks(store: Store, number: int, words: int = 10) -> list[ChunkTask]:
    """So many shards of one document to be chunked; 100,000 words take half a second."""
    return [
        ChunkTask(
            source=SOURCE,
            grows=Growth(of=Part.alone(layer), made_of=(layer,)),
            left=None,
            chunking=Chunking(max_tokens=32, overlap=4),
        )
        for layer in (_layer(store, shard, words) for shard in range(number))
    ]


def copy_tasks(primary: Store, number: int) -> list[CopyTask]:
    """So many layers to be copied."""
    layers = [_layer(primary, shard, 10) for shard in range(number)]
    return [CopyTask(source=SOURCE, primary=primary.url, layer=layer) for layer in layers]
