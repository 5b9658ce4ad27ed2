"""Leftovers: vectors that a run bought and no part holds, in the store, for a next run that has another home.

A run leaves what its journal alone has as immutable objects, named by the SHA-256 of their bytes: when it stops before
a shard is whole, and each half minute on its way, for one that is killed leaves nothing any more. The next run takes
them into its journal, wherever that is, and removes them once its snapshot is committed: then its parts hold them, or
no text of the source wants them any more.
"""

import hashlib
import io
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.embedding.journal import Journal
from embedding_assets.errors import PipelineError
from embedding_assets.snapshots.names import JOURNALS
from embedding_assets.snapshots.stores import Store

_log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 30.0
"""How much of a run's work a kill costs at most, where its home is lost as well."""

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
        return f"{JOURNALS}/{self.asset}/{self.source}"

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
    return sorted(entry.path for entry in place.store.entries(place.folder))


class Leaving:
    """Leaves what a run buys, time and again. `paths`: the objects that it has left."""

    def __init__(self, place: Place, journal: Journal) -> None:
        self._place = place
        self._journal = journal
        self._last = time.monotonic()
        self.paths: list[str] = []

    def leave_in_time(self) -> None:
        """Leave what there is, if the last time is `EVERY_SECONDS` ago."""
        if time.monotonic() - self._last >= EVERY_SECONDS:
            self.leave()
            self._last = time.monotonic()

    def leave(self) -> None:
        """Leave what there is. A store that takes nothing fails no run: the journal has it still."""
        try:
            self.paths += leave(self._place, self._journal)
        except PipelineError as error:
            _log.warning("what was bought is in this home alone: %s", error)


def leave(place: Place, journal: Journal) -> Iterator[str]:
    """Put into the store what only the journal has, some thousand vectors an object; the paths, as they are written."""
    while rows := journal.unstored(_AT_ONCE):
        hashes = [text_hash for text_hash, _ in rows]
        vectors = [vector for _, vector in rows]
        columns = [pa.array(hashes, pa.binary(32)), pa.array(vectors, pa.binary(4 * place.dimensions))]
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.table(columns, place.schema), sink, compression="none", use_dictionary=False, write_statistics=False
        )
        data = sink.getvalue().to_pybytes()
        path = f"{place.folder}/{place.model}/{hashlib.sha256(data).hexdigest()}.parquet"
        place.store.put_if_absent(path, data)
        journal.note_stored(path, hashes)
        yield path


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
