"""Leftovers: vectors that a run bought and no part holds, in the store, for a next run that has another home.

A run that stops before a shard is whole leaves what its journal alone has as immutable objects, each named by the
SHA-256 of its bytes. The next run takes them into its journal, wherever that is, and removes them once its snapshot is
committed: then its parts hold them, or no text of the source wants them any more.
"""

import hashlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.embedding.journal import Journal
from embedding_assets.snapshots.stores import Store

_log = logging.getLogger(__name__)

FOLDER: Final = "journals"

_AT_ONCE: Final = 4_000  # vectors an object: about as many as a shard has

_NAME: Final = re.compile(r"([0-9a-f]{16})/([0-9a-f]{64})\.parquet")


class Place(NamedTuple):
    """Where the leftovers of one source and model are. `model`: 16 hex digits that name what made the vectors."""

    store: Store
    asset: str
    source: str
    model: str
    dimensions: int

    @property
    def folder(self) -> str:
        """The folder of the source, with those of all its models."""
        return f"{FOLDER}/{self.asset}/{self.source}"

    @property
    def schema(self) -> pa.Schema:
        """What an object has: the hash of each text, and its unit vector as little-endian float32."""
        return pa.schema(
            [
                pa.field("text_hash", pa.binary(32), nullable=False),
                pa.field("embedding", pa.binary(4 * self.dimensions), nullable=False),
            ]
        )


def listed(place: Place) -> list[str]:
    """The paths of all leftovers of the source, of whatever model."""
    return sorted(found.path for found in place.store.entries(place.folder))


def leave(place: Place, journal: Journal) -> None:
    """Put into the store what only the journal has, some thousand vectors an object."""
    while found := journal.unstored(_AT_ONCE):
        hashes = [text_hash for text_hash, _ in found]
        vectors = [vector for _, vector in found]
        columns = [pa.array(hashes, pa.binary(32)), pa.array(vectors, pa.binary(4 * place.dimensions))]
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.table(columns, place.schema), sink, compression="none", use_dictionary=False, write_statistics=False
        )
        data = sink.getvalue().to_pybytes()
        path = f"{place.folder}/{place.model}/{hashlib.sha256(data).hexdigest()}.parquet"
        place.store.put_if_absent(path, data)
        journal.note_stored(path, hashes)


def unknown(place: Place, journal: Journal, paths: Sequence[str]) -> Iterator[list[tuple[bytes, bytes]]]:
    """(text hash, float32 bytes) of the leftovers of this model that the journal does not know, an object at a time.

    They are known afterwards. One that is gone or damaged is passed over: what only it held is bought again.
    """
    known = journal.objects()
    journal.forget_objects({path for path in known if path.startswith(f"{place.folder}/")}.difference(paths))
    for path in paths:
        if path not in known and (table := _proved(place, path)) is not None:
            hashes: list[bytes] = table.column("text_hash").to_pylist()
            yield list(zip(hashes, table.column("embedding").to_pylist(), strict=True))
            journal.note_stored(path, hashes)


def _proved(place: Place, path: str) -> pa.Table | None:
    """What an object of this model holds, if its bytes are those that it is named by."""
    name = _NAME.fullmatch(path.removeprefix(f"{place.folder}/"))
    if name is None or name[1] != place.model:
        return None
    data = place.store.get(path)
    if data is None:
        return None
    if hashlib.sha256(data).hexdigest() == name[2]:
        table = pq.read_table(io.BytesIO(data))
        if table.schema.equals(place.schema):
            return table
    _log.warning("store %s: %s is damaged; the vectors in it are bought again", place.store.url, path)
    return None
