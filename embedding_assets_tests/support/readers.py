"""Applications that query a region without pause, and all that a region's upkeep does meanwhile."""

import hashlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import psycopg

from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes import recall
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.indexes.upkeep import Cure, Finding, act
from embedding_assets.pgvector.loading.load import load
from embedding_assets.pgvector.options import TARGET_RECALL, USUAL
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.publishing.promotion import promote
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.rows.shards import ShardRef, ShardRows
from embedding_assets.pgvector.schema.generations import published_generation
from embedding_assets.pgvector.schema.models import Model
from embedding_assets.snapshots.failpoints import VARIABLE, Failpoint
from embedding_assets.snapshots.slots import Slot
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import Row, row, shard_rows, unit

CLIENTS: Final = 8
K: Final = 10
CHUNKS: Final = 4  # of each document

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Library:
    """A source whose documents carry their edition in every chunk; those in `newer` are one edition ahead."""

    shards: int = 4
    documents: int = 30  # a shard
    dimensions: int = 8  # of both models, so that a query suits whichever is live
    edition: int = 0
    newer: frozenset[int] = frozenset()
    name: str = "handbook"

    @property
    def refs(self) -> list[ShardRef]:
        return [
            ShardRef(shard, _hash([self.edition_of(n) for n in self._numbers(shard)]), self.documents * CHUNKS)
            for shard in range(self.shards)
        ]

    @property
    def root(self) -> str:
        return _hash([ref.key for ref in self.refs])

    @property
    def models(self) -> dict[Slot, Model]:
        return {slot: Model(f"toy-{slot}", self.dimensions, "test") for slot in ("v1", "v2")}

    def edition_of(self, document: int) -> int:
        return self.edition + (document in self.newer)

    def read(self, ref: ShardRef) -> ShardRows:
        rows = [self._row(n, chunk) for n in self._numbers(ref.shard) for chunk in range(CHUNKS)]
        return shard_rows(rows, self.dimensions, self.dimensions)

    def reload(self, conn: Connection) -> None:
        """A new generation, the whole way."""
        load_generation(conn, self.name, self.root, self.refs, self.read)
        build_indexes(conn, self.name, self.root)
        publish(conn, self.name, self.root, self.refs)

    def follow(self, conn: Connection) -> None:
        """A delta, the whole way."""
        assert load(conn, self.name, self.root, self.refs, self.read).choice.way == "delta"
        build_indexes(conn, self.name, self.root)
        publish(conn, self.name, self.root, self.refs)

    def _numbers(self, shard: int) -> range:
        return range(shard * self.documents, (shard + 1) * self.documents)

    def _row(self, document: int, chunk: int) -> Row:
        edition, d = self.edition_of(document), self.dimensions
        rng = np.random.default_rng([document, chunk, edition])
        content = f"edition {edition}, chunk {chunk}"
        return row(document * CHUNKS + chunk, d, d, content=content, v1=unit(rng, d), v2=unit(rng, d))


@dataclass
class Clients:
    """What the clients met: problems, and the seconds that each answer took, by what was going on when it was asked."""

    phase: str = "idle"
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    answered: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def during(self, phase: str, answers: int = CLIENTS) -> Iterator[None]:
        """Name what is going on, and have at least so many answers asked for meanwhile."""
        self.phase = phase
        yield
        with self.answered:
            enough = self.answered.wait_for(lambda: self.problems or len(self.seconds.get(phase, [])) >= answers, 60)
        assert enough, f"the clients were not answered during {phase}"

    def percentile(self, phase: str, share: float) -> float:
        """Milliseconds within which this share of a phase's answers came."""
        found = sorted(self.seconds[phase])
        return 1_000 * found[max(math.ceil(share * len(found)) - 1, 0)]


@contextmanager
def clients(dsn: str, library: Library, count: int = CLIENTS) -> Iterator[Clients]:
    """Clients that query until the end, each on one connection, with statements that the server has prepared."""
    met, done = Clients(), threading.Event()
    connected = threading.Barrier(count + 1)
    threads = [
        threading.Thread(target=_query, args=(dsn, library, met, seed, connected, done)) for seed in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        connected.wait(60)
        yield met
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _query(
    dsn: str, library: Library, met: Clients, seed: int, connected: threading.Barrier, done: threading.Event
) -> None:
    rng = np.random.default_rng(seed)
    answer = "SELECT document_id, ordinal, content FROM"
    with psycopg.connect(dsn, autocommit=True) as conn:
        connected.wait(60)
        while not done.is_set():
            query = vector_literal(unit(rng, library.dimensions))
            document = f"doc-{rng.integers(library.shards * library.documents)}"
            asked: list[tuple[str, list[Any], int]] = [
                (f"{answer} search(%s, %s)", [query, K], K),
                (f"{answer} search(%s, %s, %s)", [query, K, library.name], K),
                (f"{answer} search(%s, %s, filter => %s)", [query, K, f'{{"team": "{rng.integers(10)}"}}'], K),
                (f"{answer} live_chunks ORDER BY embedding <=> %s::vector LIMIT %s", [query, K], K),
                (f"{answer} live_chunks WHERE source = %s AND document_id = %s", [library.name, document], CHUNKS),
            ]
            for statement, values, wanted in asked:
                phase, began = met.phase, time.perf_counter()
                try:
                    found = conn.execute(statement, values, prepare=True).fetchall()
                except psycopg.Error as error:
                    problem = f"{type(error).__name__}: {error}"
                else:
                    problem = wrong(found, wanted)
                with met.answered:
                    met.seconds.setdefault(phase, []).append(time.perf_counter() - began)
                    if problem:
                        met.problems.append(f"{phase}: {statement}: {problem}")
                    met.answered.notify_all()
                if conn.closed:
                    return


def wrong(found: list[tuple[Any, ...]], wanted: int) -> str:
    """What is wrong with an answer; empty where nothing is."""
    different = len({(document, ordinal) for document, ordinal, _ in found})
    if (different, len(found)) != (wanted, wanted):
        return f"{different} different chunks of {wanted}, in {len(found)} rows"
    editions = Counter(document for document, _ in {(d, content.partition(",")[0]) for d, _, content in found})
    mixed = [document for document, count in editions.items() if count > 1]
    return f"{mixed} in more than one edition" if mixed else ""


def operations(dsn: str, conn: Connection, library: Library) -> list[tuple[str, Callable[[], Library]]]:
    """Everything that readers must not notice, in the order of doing it; each returns what is published after it."""
    second, third = replace(library, edition=1), replace(library, edition=2)
    few = frozenset(range(0, library.shards * library.documents, library.documents // 2 + 1))
    changed, more = replace(second, newer=few), replace(second, newer=few | {1})

    def reload() -> Library:
        second.reload(conn)
        return second

    def delta() -> Library:
        changed.follow(conn)
        return changed

    def tend(cure: Cure, slot: Slot | None = None) -> Library:
        generation = published_generation(conn, library.name)
        assert generation is not None
        act(conn, generation, Finding("a test asks for it", cure, slot), USUAL, TARGET_RECALL)
        return changed

    def killed_delta() -> Library:
        _killed(dsn, more, "follow", Failpoint.DELTA_COPIED)
        more.follow(conn)
        return more

    def killed_reload() -> Library:
        _killed(dsn, third, "reload", Failpoint.PUBLISH_SWAP)
        third.reload(conn)
        return third

    def switch() -> Library:
        promote(conn, "v2")
        promote(conn, "v1")
        return third

    return [
        ("full reload", reload),
        ("delta", delta),
        ("index rebuild", lambda: tend("reindex", "v1")),
        ("VACUUM", lambda: tend("vacuum")),
        ("killed delta, resumed", killed_delta),
        ("killed reload, resumed", killed_reload),
        ("model switch and back", switch),
    ]


def assert_published(conn: Connection, library: Library) -> None:
    assert compare(conn, library.name, library.refs, library.read) == []


def _killed(dsn: str, library: Library, way: str, failpoint: str) -> None:
    process = FORKS.Process(target=_run, args=(dsn, library, way, failpoint))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"{failpoint} was never reached"


def _run(dsn: str, library: Library, way: str, failpoint: str) -> None:
    os.environ[VARIABLE] = failpoint
    recall.QUESTIONS = 5  # type: ignore[misc]
    with connect(dsn) as conn:
        getattr(library, way)(conn)


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()
