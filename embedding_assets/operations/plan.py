"""What binding the next model takes, before anything is bought: texts, tokens, money, time and bytes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedding_assets.embedding.options import Binding
from embedding_assets.operations.deployment import Deployment
from embedding_assets.pgvector.indexes.hnsw import graph_bytes
from embedding_assets.pgvector.rows.vector_types import vector_type
from embedding_assets.snapshots import log
from embedding_assets.snapshots.names import CHUNKS
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.rejections import RejectedText
from embedding_assets.snapshots.slots import Slot, asset_of
from embedding_assets.snapshots.snapshot import Snapshot

_HASHES = np.dtype("V32")
_BESIDE_A_VECTOR = 80
"""Bytes of a row of vectors besides the vector: its chunk id and two hashes."""


class Plan(NamedTuple):
    """What one source takes. `texts` are sent once each, however many chunks have them.

    `hours` are what the quota allows at best; None where the model has none. `stored_bytes` are written in the primary
    region's store and copied to each other one; `table_bytes` and `index_bytes` come in each region's database.
    """

    source: str
    slot: Slot
    model: str
    chunks: int
    texts: int
    tokens: int
    usd: float
    hours: float | None
    stored_bytes: int
    table_bytes: int
    index_bytes: int


def plan(deployment: Deployment, to: Slot) -> Iterator[Plan]:
    """What the slot's model still takes, source by source; reads the primary region's store, and writes nothing.

    A text counts where no part has its vector by this model, nor a rejection. Vectors that an interrupted run bought
    and keeps beside its parts are not known here: they make it less. Raises PermanentError where the slot is empty in
    the settings.
    """
    binding = deployment.binding(to)
    for source in deployment.settings.sources:
        chunks = log.head(deployment.primary, CHUNKS, source)
        yield _of(deployment, source, chunks, binding, to)


def _of(deployment: Deployment, source: str, chunks: Snapshot | None, binding: Binding, to: Slot) -> Plan:
    store, width = deployment.primary, 2 if deployment.settings.models[to].halfvec else 4
    needed, tokens = _distinct(
        (read_part(store, source, part, ["text_hash", "tokens"]) for part in chunks.parts) if chunks else iter(())
    )
    head = log.head(store, asset_of(to), source)
    if head is not None and binding.is_recorded_as(head.model):
        tables = (read_part(store, source, part, ["text_hash", "embedding"]) for part in head.parts)
        have, _ = _distinct(table.filter(pc.is_valid(table["embedding"])) for table in tables)
        dead = [bytes.fromhex(one.text_hash) for one in head.rejected if isinstance(one, RejectedText)]
        known = np.concatenate([have, np.array(dead, _HASHES)])
        left = ~np.isin(needed.view("S32"), known.view("S32"))
        needed, tokens = needed[left], tokens[left]
    count, total = len(needed), int(tokens.sum())
    rows = chunks.counts["chunks"] if chunks else 0
    kind = vector_type(binding.dimensions, halfvec=width == 2)
    width = 2 if kind.name == "halfvec" else 4
    return Plan(
        source,
        to,
        binding.model,
        rows,
        count,
        total,
        total * binding.price_per_million_tokens / 1e6,
        _hours(binding, count, total),
        rows * (4 * binding.dimensions + _BESIDE_A_VECTOR),
        rows * width * binding.dimensions,
        graph_bytes(rows, binding.dimensions, width, deployment.hnsw[to].m) if rows else 0,
    )


def _distinct(tables: Iterator[pa.Table]) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """The different texts' hashes, and the tokens of each where they are read; 40 bytes a text are held."""
    hashes: list[npt.NDArray[np.void]] = []
    tokens: list[npt.NDArray[np.int64]] = []
    for table in tables:
        column = table["text_hash"].combine_chunks().cast(pa.binary())
        joined = b"".join(column.to_pylist())
        hashes.append(np.frombuffer(joined, _HASHES))
        known = table["tokens"].to_numpy() if "tokens" in table.column_names else np.zeros(table.num_rows)
        tokens.append(known.astype(np.int64))
    if not hashes:
        return np.empty(0, _HASHES), np.empty(0, np.int64)
    together = np.concatenate(hashes)
    _, first = np.unique(together.view("S32"), return_index=True)
    return together[first], np.concatenate(tokens)[first]


def _hours(binding: Binding, texts: int, tokens: int) -> float | None:
    minutes = [
        tokens / binding.tokens_per_minute if binding.tokens_per_minute else None,
        -(-texts // binding.max_items) / binding.requests_per_minute if binding.requests_per_minute else None,
    ]
    known = [one for one in minutes if one is not None]
    return max(known) / 60 if known else None
