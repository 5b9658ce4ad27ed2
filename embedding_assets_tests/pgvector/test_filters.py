"""Filters of any selectivity, on real texts and a real model: as many rows as there are up to k, and the right ones."""

import asyncio
import hashlib
import itertools
import json
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import psycopg
import pytest

from embedding_assets.embedding.providers.local import LocalProvider
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes import inverted
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.reading.search import search
from embedding_assets.pgvector.rows.shards import ShardRef
from embedding_assets.settings.default import default_settings
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import Row, bind, shard_rows

ROWS, K, QUESTIONS = 12_000, 10, 40

SHARES = ("thousandth", "hundredth", "tenth", "half")


class Corpus:
    """Windows of the reference topics and of the installed packages' descriptions, with their vectors."""

    def __init__(self) -> None:
        texts = {f"topics/{name}": text for name, text in topics.items()}
        for distribution in distributions():
            about = cast(Message, distribution.metadata)
            texts[f"packages/{about['Name']}"] = str(about.get_payload() or about.get("Description") or "")
        windows = [
            (name, start // 150, text[start : start + 300])
            for name, text in sorted(texts.items())
            for start in range(0, max(len(text) - 150, 1), 150)
            if text[start : start + 300].strip()
        ]
        # Filters that have nothing to do with the text: any may be as far from a question as any other.
        windows.sort(key=lambda window: hashlib.sha256(repr(window).encode()).digest())
        windows = windows[:ROWS]
        answer = asyncio.run(
            LocalProvider(default_settings(Path()).models["v1"]).embed([text for _, _, text in windows])
        )
        self.vectors: npt.NDArray[np.float32] = answer.vectors / np.linalg.norm(answer.vectors, axis=1, keepdims=True)
        self.rows = [
            Row(
                chunk_id=hashlib.sha256(f"{name} {ordinal}".encode()).digest()[:16],
                document_id=name,
                ordinal=ordinal,
                start=150 * ordinal,
                end=150 * ordinal + len(text),
                content=text,
                metadata=json.dumps(
                    {
                        "half": number % 2 == 0,
                        "tenth": number % 10 == 0,
                        "hundredth": number % 100 == 0,
                        "thousandth": number % 1000 == 0,
                    }
                ),
                v1=vector,
                v2=None,
            )
            for number, ((name, ordinal, text), vector) in enumerate(zip(windows, self.vectors, strict=True))
        ]
        self.fits = {share: np.array([json.loads(row.metadata)[share] for row in self.rows]) for share in SHARES}
        self.sources = np.array([row.document_id.partition("/")[0] for row in self.rows])
        # Questions about texts, as far from them as short questions are: at a cosine of .55, as measured recall has it.
        rng = np.random.default_rng(7)
        noise = rng.standard_normal((QUESTIONS, 256)).astype(np.float32)
        noise *= 1.5 / np.linalg.norm(noise, axis=1, keepdims=True)
        self.questions: npt.NDArray[np.float32] = self.vectors[rng.choice(ROWS, QUESTIONS, replace=False)] + noise

    def load(self, conn: Connection) -> None:
        bind(conn, d1=256)
        for source in sorted(set(self.sources)):
            rows = list(itertools.compress(self.rows, self.sources == source))
            read = shard_rows(rows, 256)
            ref = ShardRef(0, hashlib.sha256(source.encode()).hexdigest(), len(rows))
            loaded = load_generation(conn, source, ref.key, [ref], {ref: read}.__getitem__)
            build_indexes(conn, source, ref.key)
            inverted.ensure_metadata_index(conn, loaded.generation)
            publish(conn, source, ref.key, [ref])

    def exact(
        self, question: npt.NDArray[np.float32], share: str | None, source: str | None
    ) -> npt.NDArray[np.float32]:
        """Distances of the k nearest rows that fit, nearest first, by looking at each."""
        fits = self.fits[share] if share else np.full(ROWS, True)
        if source is not None:
            fits = fits & (self.sources == source)
        distances = 1 - self.vectors[fits] @ question / np.linalg.norm(question)
        return np.sort(distances)[:K]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


@pytest.fixture(scope="module")
def served(postgres: Path, corpus: Corpus) -> Iterator[Connection]:
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE filters TEMPLATE template")
        with connect(embedded.dsn(postgres, "filters")) as conn:
            corpus.load(conn)
            yield conn
        admin.execute("DROP DATABASE filters WITH (FORCE)")


@pytest.mark.parametrize("source", [None, "packages", "topics"])
@pytest.mark.parametrize("share", [*SHARES, None])
def test_a_filter_of_any_share_finds_k_rows_and_the_right_ones(
    served: Connection, corpus: Corpus, share: str | None, source: str | None
) -> None:
    found, wanted = 0, 0
    for question in corpus.questions:
        exact = corpus.exact(question, share, source)

        hits = search(served, question, K, source, {share: True} if share else {})

        assert len(hits) == len(exact)
        assert all(hit.metadata[share] for hit in hits if share)
        assert source is None or {hit.source for hit in hits} <= {source}
        distances = [hit.distance for hit in hits]
        assert distances == sorted(distances)
        found += sum(distance <= exact[-1] + 1e-5 for distance in distances)
        wanted += len(exact)
    assert found >= 0.95 * wanted


def index_scans(conn: Connection, filter: dict[str, Any], question: npt.NDArray[np.float32]) -> dict[str, int]:
    """How often a search asked each kind of index, and how often it read a table whole."""
    counted = """
        SELECT substring(relname, '^generation_\\d+_?(.*)'), sum(pg_stat_get_xact_numscans(oid))::integer
        FROM pg_class WHERE relname ~ '^generation_\\d' AND relkind IN ('i', 'r') GROUP BY 1
    """
    with conn.transaction():
        before: dict[str | None, int] = dict(conn.execute(counted).fetchall())
        search(conn, question, K, None, filter)
        after: dict[str | None, int] = dict(conn.execute(counted).fetchall())
    return {kind or "table": after[kind] - before[kind] for kind in after if after[kind] != before[kind]}


def test_a_narrow_filter_goes_by_the_metadatas_index_and_a_wide_one_by_the_vectors(
    served: Connection, corpus: Corpus
) -> None:
    question = corpus.questions[0]

    assert index_scans(served, {"half": True}, question) == {"v1": 2}
    assert index_scans(served, {"thousandth": True}, question).keys() == {"metadata"}
    assert index_scans(served, {"half": "neither"}, question).keys() == {"metadata"}


def test_without_the_metadatas_index_a_filter_still_finds_all(served: Connection, corpus: Corpus) -> None:
    """As in a generation that an older version of this project has built."""
    question = corpus.questions[1]
    expected = search(served, question, K, None, {"thousandth": True})
    with served.transaction(force_rollback=True):
        named = "SELECT relname FROM pg_class WHERE relname ~ '^generation_\\d+_metadata$'"
        for (name,) in served.execute(named).fetchall():
            served.execute(f"DROP INDEX embedding_assets.{name}".encode())
        assert search(served, question, K, None, {"thousandth": True}) == expected
