"""Loading rows into a generation's table: our loader beside psql and psycopg, on the same rows and server.

`ratio` is the speed relative to `psql \\copy … (format binary)` of a ready file into the same kind of table: without
indexes, vectors kept in line. Ours does more in its time: it encodes the rows from Arrow, fingerprints each in a second
thread, and commits each shard with its ledger row. The table without options has pgvector's and Postgres's defaults;
the usual one has a primary key besides.

Rows are 800 characters of Python's reference topics, metadata, and one random unit vector. All ways take turns in each
of three rounds, after a checkpoint, each on a connection of its own; the clock stops when the rows are durable. Medians
count. Server CPU is that of all processes of the server.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Final, NamedTuple
from uuid import UUID

import numpy as np
import psycopg
import pyarrow as pa
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from embedding_assets.pgvector import embedded, schema
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.copy import COLUMNS, HEADER, TRAILER, encode
from embedding_assets.pgvector.generations import TOAST_TUPLE_TARGET, load_generation
from embedding_assets.pgvector.shards import ShardRef, ShardRows
from embedding_assets.snapshots.schemas import CHUNKS, vectors

SIZES: Final = ((50_000, 384), (20_000, 1_536))
SHARD_ROWS: Final = 4_000
CHARACTERS: Final = 800
ROUNDS: Final = 3
TICKS: Final = os.sysconf("SC_CLK_TCK")

SAME_KIND: Final = f"WITH (toast_tuple_target = {TOAST_TUPLE_TARGET})"
COPY: Final = f"COPY target ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)".encode()
STANDARD: Final = "psql \\copy, same kind of table"


class Taken(NamedTuple):
    """What one way took once, in seconds."""

    wall: float
    client_cpu: float
    server_cpu: float


def measure() -> list[dict[str, object]]:
    """Every way at every size, on an embedded server of its own."""
    home = Path(tempfile.mkdtemp(prefix="embedding-assets-bench-"))
    try:
        return [row for rows, dimensions in SIZES for row in _measure_size(home, rows, dimensions)]
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


def _measure_size(home: Path, rows: int, dimensions: int) -> list[dict[str, object]]:
    dsn = embedded.dsn(home, f"load_{dimensions}")
    schema.migrate(dsn)
    with connect(dsn) as conn:
        models = {
            "v1": schema.Model("bench", dimensions, "none"),
            "v2": schema.Model("no vectors in these rows", 1, "none"),
        }
        schema.ensure_models(conn, models, "v1")
    shards = _shards(rows, dimensions)
    file = home / "rows.pgcopy"
    with file.open("wb") as stream:
        stream.write(HEADER)
        for number, shard in enumerate(shards):
            stream.writelines(block.data for block in encode(shard, number))
        stream.write(TRAILER)
    tuples = [row for number, shard in enumerate(shards) for row in _tuples(number, shard)]

    ways: dict[str, Callable[[], None]] = {
        "ours": lambda: _ours(dsn, shards),
        "ours, encoding and sending alone": lambda: _ours_copy(dsn, shards),
        STANDARD: lambda: _psql(dsn, file, SAME_KIND),
        "psql \\copy, table without options": lambda: _psql(dsn, file, ""),
        "psql \\copy, usual table": lambda: _psql(dsn, file, "", key=True),
        "psycopg write_row, same kind of table": lambda: _write_row(dsn, tuples),
    }
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            taken[name].append(_timed(home, dsn, way))
    standard = median(once.wall for once in taken[STANDARD])
    return [
        {
            "rows": rows,
            "dimensions": dimensions,
            "way": name,
            "seconds": median(once.wall for once in times),
            "rows_per_second": rows / median(once.wall for once in times),
            "ratio": standard / median(once.wall for once in times),
            "client_cpu_µs_a_row": median(once.client_cpu for once in times) / rows * 1e6,
            "server_cpu_µs_a_row": median(once.server_cpu for once in times) / rows * 1e6,
        }
        for name, times in taken.items()
    ]


def _timed(home: Path, dsn: str, way: Callable[[], None]) -> Taken:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS target")
        conn.execute("DELETE FROM embedding_assets.generations")
        left = conn.execute("SELECT relname FROM pg_class WHERE relname ~ '^generation_[0-9]+$' AND relkind = 'r'")
        for (table,) in left.fetchall():
            conn.execute(f"DROP TABLE embedding_assets.{table}")
        conn.execute("CHECKPOINT")
        server, client, began = _server_cpu(home), _client_cpu(), time.perf_counter()
        way()
        wall, client = time.perf_counter() - began, _client_cpu() - client
        # A backend's CPU is counted with its parent's once it is gone.
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        while conn.execute(others).fetchone() != (0,):
            time.sleep(0.01)
        return Taken(wall, client, _server_cpu(home) - server)


def _ours(dsn: str, shards: list[ShardRows]) -> None:
    refs = [ShardRef(number, str(number), shard.chunks.num_rows) for number, shard in enumerate(shards)]
    with connect(dsn) as conn:
        load_generation(conn, "bench", "root", refs, lambda ref: shards[ref.shard])


def _ours_copy(dsn: str, shards: list[ShardRows]) -> None:
    with connect(dsn) as conn:
        _create(conn, SAME_KIND, key=False)
        with conn.cursor().copy(COPY) as copy:
            copy.write(HEADER)
            for number, shard in enumerate(shards):
                for block in encode(shard, number):
                    copy.write(block.data)
            copy.write(TRAILER)


def _psql(dsn: str, file: Path, options: str, key: bool = False) -> None:
    with psycopg.connect(dsn) as conn:
        _create(conn, options, key)
    command = f"\\copy target ({', '.join(COLUMNS)}) from '{file}' with (format binary)"
    psql = embedded.binaries() / "psql"
    subprocess.run([psql, dsn, "-qc", command], check=True)  # noqa: S603


def _write_row(dsn: str, rows: list[tuple[object, ...]]) -> None:
    with psycopg.connect(dsn) as conn:
        _create(conn, SAME_KIND, key=False)
        conn.commit()  # with `wal_level = minimal`, a table made in the same transaction would be loaded without WAL
        register_vector(conn)
        with conn.cursor().copy(COPY) as copy:
            copy.set_types(["int4", "uuid", "text", "int4", "int4", "int4", "text", "jsonb", "vector", "vector"])
            for row in rows:
                copy.write_row(row)


def _create(conn: psycopg.Connection, options: str, key: bool) -> None:
    conn.execute(f"CREATE TABLE target (LIKE embedding_assets.chunks) {options}".encode())
    conn.execute("ALTER TABLE target ALTER COLUMN source SET DEFAULT 'bench'")
    if key:
        conn.execute("ALTER TABLE target ADD PRIMARY KEY (chunk_id)")


def _shards(rows: int, dimensions: int) -> list[ShardRows]:
    """Rows as the parts of shards, of 4,000 each."""
    rng = np.random.default_rng(0)
    text = "\n".join(topics.values())
    shards = []
    for first in range(0, rows, SHARD_ROWS):
        numbers = range(first, min(first + SHARD_ROWS, rows))
        ids = [sha256(str(number).encode()).digest()[:16] for number in numbers]
        starts = rng.integers(0, len(text) - CHARACTERS, len(ids))
        contents = [text[start : start + CHARACTERS] for start in starts]
        hashes = pa.array([sha256(content.encode()).digest() for content in contents], pa.binary(32))
        metadata = [json.dumps({"team": f"team {number % 20}", "title": f"Document {number}"}) for number in numbers]
        places = [pa.array([number % 40 for number in numbers], pa.int32())] * 4
        columns = [pa.array(ids, pa.binary(16)), pa.array([f"docs/{number // 40}.md" for number in numbers]), *places]
        chunks = pa.table([*columns, pa.array(contents), hashes, pa.array(metadata)], schema=CHUNKS)
        vector = rng.standard_normal((len(ids), dimensions), np.float32)
        vector /= np.linalg.norm(vector, axis=1, keepdims=True)
        values = pa.array([one.tobytes() for one in vector], pa.binary(4 * dimensions))
        v1 = pa.table([columns[0], hashes, values], schema=vectors(dimensions))
        v2 = pa.table([columns[0], hashes, pa.nulls(len(ids), pa.binary(4))], schema=vectors(1))
        shards.append(ShardRows(chunks, v1, v2))
    return shards


def _tuples(number: int, shard: ShardRows) -> list[tuple[object, ...]]:
    """A shard's rows as psycopg takes them."""
    found: list[tuple[object, ...]] = []
    for row, given in zip(shard.chunks.to_pylist(), shard.v1.column("embedding").to_pylist(), strict=True):
        place = (row["ordinal"], row["start"], row["end"])
        vector = Vector(np.frombuffer(given, "<f4"))
        metadata = Jsonb(row["metadata"], dumps=str)
        found.append(
            (number, UUID(bytes=row["chunk_id"]), row["document_id"], *place, row["text"], metadata, vector, None)
        )
    return found


def _client_cpu() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in usage)


def _server_cpu(home: Path) -> float:
    """CPU seconds of the server's processes, and of those that it has seen end; asked again if one ends meanwhile."""
    postmaster = int((home / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    try:
        living = sum(sum(islice(_ticks(int(child)), 2)) for child in children)
    except FileNotFoundError:
        return _server_cpu(home)
    return (sum(_ticks(postmaster)) + living) / TICKS


def _ticks(pid: int) -> list[int]:
    """utime, stime, cutime, cstime."""
    return [int(field) for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON object a line, one for each way and size")
    arguments = parser.parse_args()
    rows = measure()
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
        return
    for row in rows:
        print(
            f"{row['rows']:>7,} × {row['dimensions']:<6,} {row['way']:<40} {row['seconds']:6.2f} s "
            f"ratio {row['ratio']:5.2f}  client {row['client_cpu_µs_a_row']:5.1f} µs "
            f"server {row['server_cpu_µs_a_row']:5.1f} µs a row"
        )


if __name__ == "__main__":
    main()
