"""Loading rows: our loader beside psql, psycopg and the peers, and what a change costs, on the same rows and server.

`ratio` is the speed relative to `psql \\copy … (format binary)` of a ready file into the same kind of table: without
indexes, vectors kept in line. Ours does more in its time: it encodes the rows from Arrow, digests each, and commits
each shard with its ledger row, on several connections. The table without options has pgvector's and Postgres's
defaults; the usual one has a primary key besides. The peers get their vectors made, too: 2,000 rows, into their own
tables, once.

Rows are 800 characters of Python's reference topics, metadata, and one random unit vector, 40 rows a document; shards
are as many as a source of that size has. All ways take turns in each of eighteen rounds, beginning with another each
time, after a checkpoint, each on a connection of its own; the clock stops when the rows are durable. Shown are medians,
and the median of the ratios within a round. Server CPU is that of all processes of the server.

"Without HNSW" and "with HNSW" are whole loads of one source (all indexes that such a generation has, and with HNSW
recall measured and published as well) and what follows them: the same root again, the ledger lost, and one document of
a hundred with other texts and vectors, which is in every shard. `of_whole` is their share of the whole load's seconds.
Without HNSW the medians of eighteen rounds count, with it one round does: a graph takes minutes. Random vectors are the
worst case for a graph, to build and to insert into alike. `pgvector/loading/costs.py` takes its constants from these.
"""

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Final, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from bench.peers import environment
from embedding_assets.pgvector import embedded, programs
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.loading import load
from embedding_assets.pgvector.loading.generations import TOAST_TUPLE_TARGET
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.rows.copy import COLUMNS, HEADER, TRAILER, digests_of, encode
from embedding_assets.pgvector.rows.shards import ShardRef, ShardRows, dimensions_of
from embedding_assets.pgvector.rows.vector_types import VectorTypes, vector_type
from embedding_assets.pgvector.schema import migrations
from embedding_assets.pgvector.schema.models import Model, ensure_models
from embedding_assets.settings.home import home as settings_home
from embedding_assets.snapshots.binary import chunk_hashes, vector_hashes
from embedding_assets.snapshots.keys import shard_bits
from embedding_assets.snapshots.schemas import CHUNKS, vectors
from embedding_assets.snapshots.slots import Slot
from embedding_assets_tests.support.generations import load_generation

SIZES: Final = ((50_000, 384), (20_000, 1_536))
WITHOUT_HNSW: Final = (200_000, 384)
WITH_HNSW: Final = ((50_000, 384), (10_000, 1_536))
PEERS_ROWS: Final = 2_000
DOCUMENT_ROWS: Final = 40
EDITED: Final = 100  # one document of so many
CHARACTERS: Final = 800
ROUNDS: Final = 18
ROOT: Final = Path(__file__).parents[1]
TICKS: Final = os.sysconf("SC_CLK_TCK")

SAME_KIND: Final = f"WITH (toast_tuple_target = {TOAST_TUPLE_TARGET})"
COPY: Final = f"COPY target ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)".encode()
STANDARD: Final = "psql \\copy, same kind of table"


class Taken(NamedTuple):
    """What one way took once, in seconds."""

    wall: float
    client_cpu: float
    server_cpu: float


def measure() -> Iterator[dict[str, object]]:
    """Every way at every size, on an embedded server of its own."""
    home = Path(tempfile.mkdtemp(prefix="embedding-assets-bench-"))
    try:
        for rows, dimensions in SIZES:
            yield from _measure_size(home, rows, dimensions)
        yield from _measure_changes(home, *WITHOUT_HNSW, rounds=ROUNDS, hnsw=False)
        for rows, dimensions in WITH_HNSW:
            yield from _measure_changes(home, rows, dimensions, rounds=1, hnsw=True)
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


def _measure_size(home: Path, rows: int, dimensions: int) -> list[dict[str, object]]:
    dsn = _database(home, f"load_{dimensions}", dimensions)
    shards = _shards(rows, dimensions)
    file = home / "rows.pgcopy"
    with file.open("wb") as stream:
        stream.write(HEADER)
        for number, shard in enumerate(shards):
            stream.writelines(_encoded(shard, number))
        stream.write(TRAILER)
    tuples = [row for number, shard in enumerate(shards) for row in _tuples(number, shard)]

    gc.freeze()  # a million objects of the rows' tuples, which no loader has beside it
    ways: dict[str, Callable[[], None]] = {
        "ours": lambda: _ours(dsn, shards),
        "ours, encoding and sending alone": lambda: _ours_copy(dsn, shards),
        STANDARD: lambda: _psql(dsn, file, SAME_KIND),
        "psql \\copy, table without options": lambda: _psql(dsn, file, ""),
        "psql \\copy, usual table": lambda: _psql(dsn, file, "", key=True),
        "psycopg write_row, same kind of table": lambda: _write_row(dsn, tuples),
    }
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    names = list(ways)
    for first in range(ROUNDS):
        for name in names[first % len(names) :] + names[: first % len(names)]:
            taken[name].append(_timed(home, dsn, ways[name]))
    standard = median(once.wall for once in taken[STANDARD])
    ours = [
        {
            "rows": rows,
            "dimensions": dimensions,
            "way": name,
            "seconds": median(once.wall for once in times),
            "rows_per_second": rows / median(once.wall for once in times),
            "ratio": median(base.wall / once.wall for base, once in zip(taken[STANDARD], times, strict=True)),
            "client_cpu_µs_a_row": median(once.client_cpu for once in times) / rows * 1e6,
            "server_cpu_µs_a_row": median(once.server_cpu for once in times) / rows * 1e6,
        }
        for name, times in taken.items()
    ]
    return ours + _measure_peers(home, dsn, shards[0], rows / standard)


def _measure_peers(home: Path, dsn: str, shard: ShardRows, standard: float) -> list[dict[str, object]]:
    """The peers' loaders on some rows of a shard; `standard` is psql's rows a second."""
    rows, vectors = home / "rows.jsonl", home / "vectors.npy"
    some = shard.each(lambda table: table.slice(0, PEERS_ROWS))
    with rows.open("w", encoding="utf-8") as lines:
        for row in some.chunks.select(["chunk_id", "text", "metadata"]).to_pylist():
            told = {"id": str(UUID(bytes=row["chunk_id"])), "text": row["text"], "metadata": row["metadata"]}
            lines.write(json.dumps(told) + "\n")
    np.save(vectors, np.array([np.frombuffer(one, "<f4") for one in some.vectors[0].column("embedding").to_pylist()]))
    found: list[dict[str, object]] = []
    for peer, name in (("langchain", "LangChain PGVectorStore"), ("llamaindex", "LlamaIndex PGVectorStore")):
        python = str(environment.interpreter(settings_home()))
        command = [python, "-m", "bench.peers.loading", peer, dsn, str(rows), str(vectors)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)  # noqa: S603
        seconds = json.loads(done.stdout)["seconds"]
        a_second = len(some.chunks) / seconds
        found.append(
            {
                "rows": len(some.chunks),
                "dimensions": len(some.vectors[0].column("embedding")[0].as_py()) // 4,
                "way": name,
                "seconds": seconds,
                "rows_per_second": a_second,
                "ratio": a_second / standard,
            }
        )
    return found


def _measure_changes(home: Path, rows: int, dimensions: int, *, rounds: int, hnsw: bool) -> list[dict[str, object]]:
    """A whole load, and after it what an unchanged source, a lost ledger and a change of 1 % cost."""
    dsn = _database(home, f"change_{dimensions}_{hnsw}", dimensions)
    shards = _shards(rows, dimensions)
    edited = [_edited(shard) for shard in shards]
    taken: dict[str, list[float]] = {}
    written: dict[str, int] = {}
    for _ in range(rounds):
        with connect(dsn) as conn:
            _drop_generations(conn)
            conn.execute("CHECKPOINT")

            def timed(way: str, root: str, given: list[ShardRows], conn: Connection = conn) -> None:
                refs = _refs(given, root)
                began = time.perf_counter()
                loaded = load.load(conn, "bench", root, refs, lambda ref: given[ref.shard])
                if loaded.choice.way == "new generation":
                    _finish(conn, root, refs, hnsw=hnsw)
                taken.setdefault(way, []).append(time.perf_counter() - began)
                written[way] = loaded.rows_written

            timed("whole load", "first", shards)
            timed("unchanged", "first", shards)
            conn.execute("DELETE FROM embedding_assets.ledger")
            conn.execute("UPDATE embedding_assets.generations SET target_root = 'unknown'")
            timed("ledger lost", "first", shards)
            timed("1 % of the documents changed", "second", edited)
    whole = median(taken["whole load"])
    return [
        {
            "rows": rows,
            "dimensions": dimensions,
            "way": f"{'with' if hnsw else 'without'} HNSW: {way}",
            "seconds": median(seconds),
            "rows_per_second": rows / median(seconds) if way == "whole load" else None,
            "rows_written": written[way],
            "of_whole": median(seconds) / whole,
            "ms_a_row_written": median(seconds) / written[way] * 1e3 if written[way] else None,
        }
        for way, seconds in taken.items()
    ]


def _finish(conn: Connection, root: str, refs: list[ShardRef], *, hnsw: bool) -> None:
    """Index and publish a loaded generation; without HNSW, have it taken for published, with the other indexes."""
    if hnsw:
        build_indexes(conn, "bench", root)
        publish(conn, "bench", root, refs)
        return
    (table,) = conn.execute("SELECT 'generation_' || max(id) FROM embedding_assets.generations").fetchone() or ("",)
    conn.execute(f"ALTER TABLE embedding_assets.{table} ADD PRIMARY KEY (chunk_id)".encode())
    conn.execute(f"CREATE INDEX ON embedding_assets.{table} (shard) INCLUDE (chunk_id, digest)".encode())
    conn.execute(f"VACUUM (ANALYZE) embedding_assets.{table}".encode())
    conn.execute("UPDATE embedding_assets.generations SET state = 'published'")


def _edited(shard: ShardRows) -> ShardRows:
    """A shard with other texts and vectors in one document of a hundred."""
    documents = [
        int(document[len("docs/") : -len(".md")]) for document in shard.chunks.column("document_id").to_pylist()
    ]
    chosen = np.array(documents) % EDITED == 0
    texts = [
        f"Edited. {text}" if edit else text
        for text, edit in zip(shard.chunks.column("text").to_pylist(), chosen.tolist(), strict=True)
    ]
    hashes = pa.array([sha256(text.encode()).digest() for text in texts], pa.binary(32))
    columns = dict(zip(CHUNKS.names, shard.chunks.columns, strict=True)) | {
        "text": pa.array(texts),
        "text_hash": hashes,
    }
    chunks = chunks_part(list(columns.values())[:-1])
    given = b"".join(shard.vectors[0].column("embedding").to_pylist())
    vector = np.frombuffer(given, np.float32).reshape(len(texts), -1) * np.where(chosen, np.float32(-1), 1)[:, None]
    return ShardRows(chunks, (vectors_part(chunks.column("chunk_id"), hashes, vector), shard.vectors[1]))


def _database(home: Path, name: str, dimensions: int) -> str:
    dsn = embedded.dsn(home, name)
    migrations.migrate(dsn)
    with connect(dsn) as conn:
        models: dict[Slot, Model] = {
            "v1": Model("bench", dimensions, "none"),
            "v2": Model("no vectors in these rows", 1, "none"),
        }
        ensure_models(conn, models, "v1")
    return dsn


def _refs(shards: list[ShardRows], root: str) -> list[ShardRef]:
    return [ShardRef(number, f"{root} {number}", shard.chunks.num_rows) for number, shard in enumerate(shards)]


def _timed(home: Path, dsn: str, way: Callable[[], None]) -> Taken:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS target")
        _drop_generations(conn)
        conn.execute("CHECKPOINT")
        server, client, began = server_cpu(home), _client_cpu(), time.perf_counter()
        way()
        wall, client = time.perf_counter() - began, _client_cpu() - client
        # A backend's CPU is counted with its parent's once it is gone.
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        while conn.execute(others).fetchone() != (0,):
            time.sleep(0.01)
        return Taken(wall, client, server_cpu(home) - server)


def _drop_generations(conn: Connection) -> None:
    conn.execute("DELETE FROM embedding_assets.generations")
    left = conn.execute("SELECT relname FROM pg_class WHERE relname ~ '^generation_[0-9]+$' AND relkind = 'r'")
    for (table,) in left.fetchall():
        conn.execute(f"DROP TABLE embedding_assets.{table}".encode())


def _ours(dsn: str, shards: list[ShardRows]) -> None:
    with connect(dsn) as conn:
        load_generation(conn, "bench", "root", _refs(shards, "root"), lambda ref: shards[ref.shard])


def _ours_copy(dsn: str, shards: list[ShardRows]) -> None:
    with connect(dsn) as conn:
        _create(conn, SAME_KIND, key=False)
        with conn.cursor().copy(COPY) as copy:
            copy.write(HEADER)
            for number, shard in enumerate(shards):
                for block in _encoded(shard, number):
                    copy.write(block)
            copy.write(TRAILER)


def _psql(dsn: str, file: Path, options: str, key: bool = False) -> None:
    with psycopg.connect(dsn) as conn:
        _create(conn, options, key)
    command = f"\\copy target ({', '.join(COLUMNS)}) from '{file}' with (format binary)"
    psql = programs.binaries() / "psql"
    subprocess.run([psql, dsn, "-qc", command], check=True)  # noqa: S603


def _write_row(dsn: str, rows: list[tuple[object, ...]]) -> None:
    with psycopg.connect(dsn) as conn:
        _create(conn, SAME_KIND, key=False)
        conn.commit()  # with `wal_level = minimal`, a table made in the same transaction would be loaded without WAL
        register_vector(conn)
        with conn.cursor().copy(COPY) as copy:
            copy.set_types(
                ["int4", "int8", "uuid", "text", "int4", "int4", "int4", "text", "jsonb", "vector", "vector"]
            )
            for row in rows:
                copy.write_row(row)


def _create(conn: psycopg.Connection, options: str, key: bool) -> None:
    conn.execute(f"CREATE TABLE target (LIKE embedding_assets.chunks) {options}".encode())
    conn.execute("ALTER TABLE target ALTER COLUMN source SET DEFAULT 'bench'")
    if key:
        conn.execute("ALTER TABLE target ADD PRIMARY KEY (chunk_id)")


def _shards(rows: int, dimensions: int) -> list[ShardRows]:
    """Rows as the parts of the shards of a source."""
    rng = np.random.default_rng(0)
    text = "\n".join(topics.values())
    shards = []
    shard_rows = rows >> shard_bits(rows * CHARACTERS)
    for first in range(0, rows, shard_rows):
        numbers = range(first, min(first + shard_rows, rows))
        ids = [sha256(str(number).encode()).digest()[:16] for number in numbers]
        starts = rng.integers(0, len(text) - CHARACTERS, len(ids))
        contents = [text[start : start + CHARACTERS] for start in starts]
        hashes = pa.array([sha256(content.encode()).digest() for content in contents], pa.binary(32))
        metadata = [json.dumps({"team": f"team {number % 20}", "title": f"Document {number}"}) for number in numbers]
        places = [pa.array([number % DOCUMENT_ROWS for number in numbers], pa.int32())] * 4
        columns = [
            pa.array(ids, pa.binary(16)),
            pa.array([f"docs/{number // DOCUMENT_ROWS}.md" for number in numbers]),
            *places,
        ]
        chunks = chunks_part([*columns, pa.array(contents), hashes, pa.array(metadata)])
        vector = rng.standard_normal((len(ids), dimensions), np.float32)
        vector /= np.linalg.norm(vector, axis=1, keepdims=True)
        vectors = vectors_part(columns[0], hashes, vector), no_vectors_part(columns[0], hashes)
        shards.append(ShardRows(chunks, vectors))
    return shards


def chunks_part(columns: Sequence[pa.Array]) -> pa.Table:
    """A part of these columns, and of their hash."""
    chunks = pa.table(columns, schema=CHUNKS.remove(len(CHUNKS) - 1))
    hashes = pa.array(chunk_hashes(chunks.to_pydict()), pa.binary(32))
    return chunks.append_column(CHUNKS.field("chunk_hash"), hashes)


def vectors_part(ids: pa.Array, text_hashes: pa.Array, vector: npt.NDArray[np.float32]) -> pa.Table:
    """A part of these unit vectors, (n, d) float32."""
    dimensions = vector.shape[1]
    values = pa.array([one.tobytes() for one in vector], pa.binary(4 * dimensions))
    hashes = pa.array([one.tobytes() for one in vector_hashes(vector)], pa.binary(32))
    return pa.table([ids, text_hashes, values, hashes], schema=vectors(dimensions))


def no_vectors_part(ids: pa.Array, text_hashes: pa.Array) -> pa.Table:
    """A part without a vector, of one dimension."""
    nothing = [pa.nulls(len(ids), pa.binary(width)) for width in (4, 32)]
    return pa.table([ids, text_hashes, *nothing], schema=vectors(1))


def _tuples(number: int, shard: ShardRows) -> list[tuple[object, ...]]:
    """A shard's rows as psycopg takes them."""
    found: list[tuple[object, ...]] = []
    digests = digests_of(shard, _types(shard)).tolist()
    columns = (shard.chunks.to_pylist(), shard.vectors[0].column("embedding").to_pylist(), digests)
    for row, given, digest in zip(*columns, strict=True):
        place = (row["ordinal"], row["start"], row["end"])
        key = (number, digest, UUID(bytes=row["chunk_id"]), row["document_id"])
        metadata = Jsonb(row["metadata"], dumps=str)
        found.append((*key, *place, row["text"], metadata, Vector(np.frombuffer(given, "<f4")), None))
    return found


def _encoded(shard: ShardRows, number: int) -> Iterator[memoryview]:
    return encode(shard, digests_of(shard, _types(shard)), number, _types(shard))


def _types(shard: ShardRows) -> VectorTypes:
    return tuple(vector_type(dimensions_of(vectors)) for vectors in shard.vectors)


def _client_cpu() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in usage)


def server_cpu(home: Path) -> float:
    """CPU seconds of the server's processes, and of those that it has seen end; asked again if one ends meanwhile."""
    postmaster = int((home / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    try:
        living = sum(sum(islice(_ticks(int(child)), 2)) for child in children)
    except (FileNotFoundError, ProcessLookupError):
        return server_cpu(home)
    return (sum(_ticks(postmaster)) + living) / TICKS


def _ticks(pid: int) -> list[int]:
    """utime, stime, cutime, cstime."""
    return [int(field) for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON object a line, one for each way and size")
    arguments = parser.parse_args()
    for row in measure():
        if arguments.json:
            print(json.dumps(row), flush=True)
            continue
        figures = ", ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, float))
        print(f"{row['rows']:>7,} × {row['dimensions']:<6,} {row['way']:<50} {figures}", flush=True)


if __name__ == "__main__":
    main()
