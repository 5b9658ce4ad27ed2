"""Small sources for the tests of the region's database: rows made from a seed, as the stages' parts hold them."""

import hashlib
import itertools
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.indexes.index import build_indexes, invalid_indexes
from embedding_assets.pgvector.loading.generations import Loaded
from embedding_assets.pgvector.loading.load import load
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.publishing.promotion import promote
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.rows.shards import ShardChange, ShardRef, ShardRows
from embedding_assets.pgvector.schema.generations import Generation, published_generation
from embedding_assets.pgvector.schema.models import Model, ensure_models
from embedding_assets.snapshots.schemas import CHUNKS, vectors
from embedding_assets.snapshots.slots import SLOTS, Slot
from embedding_assets_tests.support.generations import load_generation

D1, D2 = 8, 12
MODELS: Final[dict[Slot, Model]] = {"v1": Model("toy-8", D1, "test"), "v2": Model("toy-12", D2, "test")}

Vector = npt.NDArray[np.float32] | None


class Row(NamedTuple):
    """One chunk with its vectors."""

    chunk_id: bytes
    document_id: str
    ordinal: int
    start: int
    end: int
    content: str
    metadata: str
    v1: Vector
    v2: Vector


def bind(conn: Connection, d1: int = D1, d2: int = D2, live: Slot = "v1", halfvec: Collection[str] = ()) -> None:
    """Bind toy models of these dimensions, these slots as 2-byte floats, and have one of them live."""
    models = {
        slot: Model(f"toy-{dimensions}", dimensions, "test", slot in halfvec)
        for slot, dimensions in zip(SLOTS, (d1, d2), strict=True)
    }
    ensure_models(conn, models, live, validation_days=0)
    promote(conn, live)


def unit(rng: np.random.Generator, dimensions: int) -> npt.NDArray[np.float32]:
    vector = rng.standard_normal(dimensions).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def row(seed: int, d1: int = D1, d2: int = D2, **changes: Any) -> Row:
    """A row that depends on its seed alone."""
    rng = np.random.default_rng(seed)
    made = Row(
        chunk_id=hashlib.sha256(str(seed).encode()).digest()[:16],
        document_id=f"doc-{seed // 4}",
        ordinal=seed % 4,
        start=100 * (seed % 4),
        end=100 * (seed % 4) + 80,
        content=f"chunk {seed} of a text, naïve “quotes”",
        metadata=f'{{"rare": {str(seed % 100 == 0).lower()}, "team": "{seed % 10}"}}',  # as jsonb orders its keys
        v1=unit(rng, d1),
        v2=unit(rng, d2),
    )
    return made._replace(**changes)


def vector_hash(vector: npt.NDArray[np.float32]) -> bytes:
    """As an embeddings part has it: of the dimensions, two unused bytes and the values, big-endian."""
    return hashlib.sha256(struct.pack(f">hh{len(vector)}f", len(vector), 0, *vector)).digest()


def chunk_hash(r: Row) -> bytes:
    """As a chunks part has it."""
    document = r.document_id.encode()
    numbers = struct.pack(">iii", r.ordinal, r.start, r.end)
    text_hash = hashlib.sha256(r.content.encode()).digest()
    told = r.chunk_id + numbers + text_hash + struct.pack(">i", len(document)) + document + r.metadata.encode()
    return hashlib.sha256(told).digest()


def shard_rows(rows: Sequence[Row], d1: int = D1, d2: int = D2) -> ShardRows:
    """Rows as the parts of a shard."""
    hashes = pa.array([hashlib.sha256(r.content.encode()).digest() for r in rows], pa.binary(32))
    ids = pa.array([r.chunk_id for r in rows], pa.binary(16))
    columns = [
        ids,
        pa.array([r.document_id for r in rows], pa.string()),
        *(pa.array([getattr(r, name) for r in rows], pa.int32()) for name in ("ordinal", "start", "end")),
        pa.array([1] * len(rows), pa.int32()),
        pa.array([r.content for r in rows], pa.string()),
        hashes,
        pa.array([r.metadata for r in rows], pa.string()),
        pa.array([chunk_hash(r) for r in rows], pa.binary(32)),
    ]
    embeddings = [
        pa.table(
            [
                ids,
                hashes,
                pa.array([None if v is None else v.astype("<f4").tobytes() for v in given], pa.binary(4 * d)),
                pa.array([None if v is None else vector_hash(v) for v in given], pa.binary(32)),
            ],
            schema=vectors(d),
        )
        for given, d in (([r.v1 for r in rows], d1), ([r.v2 for r in rows], d2))
    ]
    return ShardRows(pa.table(columns, schema=CHUNKS), tuple(embeddings))


@dataclass(frozen=True)
class Toy:
    """A source of some shards; `edition` makes another content of it."""

    name: str = "handbook"
    shards: int = 3
    rows: int = 40
    edition: int = 0
    d1: int = D1
    d2: int = D2

    @property
    def root(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()

    @property
    def refs(self) -> list[ShardRef]:
        return [
            ShardRef(n, hashlib.sha256(f"{self.root} {n}".encode()).hexdigest(), self.rows) for n in range(self.shards)
        ]

    def rows_of(self, shard: int) -> list[Row]:
        first = 1_000_000 * self.edition + self.rows * shard
        return [
            row(seed, self.d1, self.d2, content=f"edition {self.edition}, chunk {seed}")
            for seed in range(first, first + self.rows)
        ]

    def all_rows(self) -> list[Row]:
        return list(itertools.chain.from_iterable(self.rows_of(n) for n in range(self.shards)))

    def read(self, ref: ShardRef) -> ShardRows:
        return shard_rows(self.rows_of(ref.shard), self.d1, self.d2)

    def edited(self) -> "Toy":
        return replace(self, edition=self.edition + 1)

    def publish_to(self, conn: Connection) -> Generation:
        """The whole way: load, index, publish."""
        load_generation(conn, self.name, self.root, self.refs, self.read)
        build_indexes(conn, self.name, self.root)
        return publish(conn, self.name, self.root, self.refs)


@dataclass(frozen=True)
class Source:
    """A source by the rows of its shards, each of which is named by its content; `read` tells which were asked for."""

    shards: dict[int, list[Row]]
    name: str = "handbook"
    read: list[int] = field(default_factory=list)
    before: "Source | None" = field(default=None, compare=False)
    """What changes are told from; None where no change is told."""

    @property
    def refs(self) -> list[ShardRef]:
        return [
            ShardRef(n, hashlib.sha256(repr(rows).encode()).hexdigest(), len(rows))
            for n, rows in self.shards.items()
            if rows
        ]

    @property
    def root(self) -> str:
        return hashlib.sha256("".join(ref.key for ref in self.refs).encode()).hexdigest()

    def read_shard(self, ref: ShardRef) -> ShardRows:
        self.read.append(ref.shard)
        return shard_rows(self.shards[ref.shard])

    def read_change(self, ref: ShardRef, key: str) -> ShardChange | None:
        """The documents that changed, whole, as layers have them."""
        was = next((one for one in self.before.refs if one.shard == ref.shard), None) if self.before else None
        if self.before is None or was is None or was.key != key:
            return None
        old, new = self.before.shards[ref.shard], self.shards[ref.shard]
        touched = {content[1] for content in {*map(_content, old)} ^ {*map(_content, new)}}
        rows = [r for r in new if r.document_id in touched]
        gone = {r.chunk_id for r in old if r.document_id in touched} - {r.chunk_id for r in rows}
        return ShardChange(shard_rows(rows), pa.array(sorted(gone), pa.binary(16)))

    def load(self, conn: Connection, read: Callable[[ShardRef], ShardRows] | None = None) -> Loaded:
        return load(conn, self.name, self.root, self.refs, read or self.read_shard, read_change=self.read_change)

    def publish(self, conn: Connection) -> Loaded:
        """The whole way, by a delta or a new generation."""
        loaded = self.load(conn)
        build_indexes(conn, self.name, self.root)
        publish(conn, self.name, self.root, self.refs)
        return loaded

    def changed(self, shards: dict[int, list[Row]], *, told: bool = False) -> "Source":
        return Source({**self.shards, **shards}, self.name, before=self if told else None)

    def differences(self, conn: Connection) -> list[str]:
        found = compare(conn, self.name, self.refs, lambda ref: shard_rows(self.shards[ref.shard]))
        return [str(one) for one in found]


def _content(r: Row) -> tuple[object, ...]:
    """A row that can be compared."""
    return *r[:-2], *(None if vector is None else vector.tobytes() for vector in r[-2:])


def source() -> Source:
    """Four shards of thirty rows."""
    return Source({shard: [row(n) for n in range(100 * shard, 100 * shard + 30)] for shard in range(4)})


def edited(rows: list[Row], *places: int) -> list[Row]:
    """The rows with other content in these places."""
    return [r._replace(content=f"{r.content}, edited") if n in places else r for n, r in enumerate(rows)]


def ledger(conn: Connection) -> list[tuple[int, str, int]]:
    return conn.execute("SELECT shard, key, rows FROM embedding_assets.ledger ORDER BY shard").fetchall()


def assert_serves(conn: Connection, wanted: Source) -> None:
    """What readers see is exactly the source, the ledger and the indexes with it."""
    generation = published_generation(conn, wanted.name)
    assert generation is not None
    assert generation.target_root == wanted.root
    assert wanted.differences(conn) == []
    assert ledger(conn) == [tuple(ref) for ref in wanted.refs]
    assert invalid_indexes(conn, generation) == []
    assert conn.execute("SELECT count(*) FROM embedding_assets.generations").fetchone() == (1,)


def nearest(rows: Iterable[Row], query: npt.NDArray[np.float32], k: int) -> list[tuple[str, int]]:
    """The k rows nearest to a query by v1, found by looking at each."""
    ranked = sorted(rows, key=lambda r: 1.0 - float(r.v1 @ query) if r.v1 is not None else np.inf)
    return [(r.document_id, r.ordinal) for r in ranked[:k]]
