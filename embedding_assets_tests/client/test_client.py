"""What an application gets of either client, on a real database."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from typing import Any

import numpy.typing as npt
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from embedding_assets.client import AsyncSearchClient, LiveModel, SearchClient
from embedding_assets.embedding.query import embed_query
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.publishing.promotion import promote
from embedding_assets.pgvector.schema.models import Model, ensure_models
from embedding_assets.snapshots.slots import Slot
from embedding_assets_tests.client.conftest import BINDINGS, HANDBOOK, QUESTION, NewClient, Region
from embedding_assets_tests.support.toy import D1, Toy, bind


def test_the_nearest_chunks_by_the_live_model_come_first(region: Region, new_client: NewClient) -> None:
    client = new_client(region.application)

    hits = client.search(QUESTION, k=3)

    with psycopg.connect(region.application) as conn:
        vector = embed_query(BINDINGS["v1"], QUESTION).tolist()
        asked = "SELECT source, document_id, ordinal, chunk_id, content, metadata, distance FROM search(%s, 3)"
        wanted = conn.execute(asked, [vector]).fetchall()
    assert [
        (hit.source, hit.document_id, hit.ordinal, hit.chunk_id, hit.text, hit.metadata, hit.distance) for hit in hits
    ] == wanted
    assert [hit.score for hit in hits] == [1 - hit.distance for hit in hits]
    assert hits[0].text == HANDBOOK[0]
    with pytest.raises(FrozenInstanceError):
        hits[0].text = "another"  # type: ignore[misc]


def test_a_search_is_narrowed_to_a_source_and_to_what_metadata_contain(region: Region, new_client: NewClient) -> None:
    client = new_client(region.application)

    assert {hit.source for hit in client.search(QUESTION, 100)} == {"handbook", "tickets"}
    assert {hit.text for hit in client.search(QUESTION, 100, source="handbook")} == set(HANDBOOK)
    assert {hit.text for hit in client.search(QUESTION, filter={"team": "1"}, source="handbook")} == set(HANDBOOK[1::2])
    assert client.search(QUESTION, source="nowhere") == []
    assert client.search(QUESTION, source="secret") == []


def test_hybrid_finds_by_the_words_as_well(region: Region, new_client: NewClient) -> None:
    client = new_client(region.application)

    hits = client.hybrid("soup", k=2, source="handbook")

    assert hits[0].text == HANDBOOK[3]
    assert hits[0].score > hits[1].score


def test_a_switch_between_two_calls_is_followed(region: Region, new_client: NewClient) -> None:
    client = new_client(region.application)
    before = client.search(QUESTION, 1)

    region.switch("v2")
    after = client.search(QUESTION, 1)

    assert before[0].text == after[0].text == HANDBOOK[0]
    assert after[0].distance == pytest.approx(distance_by("v2", region), abs=1e-6)
    assert before[0].distance != after[0].distance
    assert client.live_model().name == "wordllama-128"


def distance_by(slot: Slot, region: Region) -> float:
    with psycopg.connect(region.application) as conn:
        vector = embed_query(BINDINGS[slot], QUESTION).tolist()
        row = conn.execute("SELECT distance FROM search(%s, 1)", [vector]).fetchone()
    assert row is not None
    distance: float = row[0]
    return distance


def test_a_switch_after_the_question_was_embedded_is_seen_though_both_models_have_as_many_dimensions(
    database: str, new_client: NewClient
) -> None:
    """A vector of the old model finds rows of the new one without any error: such hits must not be returned."""
    toy = Toy(d2=D1)
    models: dict[Slot, Model] = {"v1": Model("one", D1, "test"), "v2": Model("another", D1, "test")}
    with connect(database) as conn:
        ensure_models(conn, models, "v1")
        toy.publish_to(conn)
        wanted = toy.all_rows()[7]
        embedded_by: list[str] = []

        def embed(question: str, model: LiveModel) -> npt.ArrayLike:
            embedded_by.append(model.slot)
            promote(conn, "v2")  # the first time another one is live from here on
            return getattr(wanted, model.slot)  # type: ignore[no-any-return]

        client = new_client(database, embed=embed)

        hits = client.search("anything", 1)

    assert embedded_by == ["v1", "v2"]
    assert hits[0].text == wanted.content
    assert hits[0].distance == pytest.approx(0, abs=1e-6)


def test_equal_questions_are_embedded_once_by_each_model_and_the_oldest_are_forgotten(
    region: Region, new_client: NewClient
) -> None:
    asked: list[tuple[str, str]] = []

    def embed(question: str, model: LiveModel) -> npt.ArrayLike:
        asked.append((question, model.slot))
        return embed_query(BINDINGS[model.slot], question)

    client = new_client(region.application, embed=embed, cached_questions=2)

    for question in ("soup", "soup", "parcel", "soup", "invoice", "soup", "parcel"):
        client.search(question, 1)
    assert [question for question, _ in asked] == ["soup", "parcel", "invoice", "parcel"]
    region.switch("v2")
    client.search("soup", 1)
    assert asked[-1] == ("soup", "v2")


def test_a_client_closes_and_says_so_afterwards(region: Region, new_client: NewClient) -> None:
    client = new_client(region.application)
    client.search(QUESTION)
    assert not client.client.closed

    client.close()
    client.close()

    assert client.client.closed
    with pytest.raises(PermanentError, match="closed"):
        client.search("another question")
    with psycopg.connect(region.pipeline) as conn:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'embedding-assets client'"
        assert conn.execute(asked).fetchone() == (0,)


def test_as_a_context_manager_it_closes_at_the_end(region: Region) -> None:
    async def ask() -> AsyncSearchClient:
        async with AsyncSearchClient(region.application) as client:
            assert len(await client.search(QUESTION, 3)) == 3
        return client

    with SearchClient(region.application) as client:
        assert len(client.search(QUESTION, 3)) == 3

    assert client.closed
    assert asyncio.run(ask()).closed


def test_many_ask_at_once_over_few_connections(region: Region) -> None:
    questions = [f"{QUESTION} {n}" for n in range(40)]

    async def ask_all() -> list[str]:
        async with AsyncSearchClient(region.application, max_connections=2) as client:
            found = await asyncio.gather(*(client.search(question, 1) for question in questions))
        return [hits[0].text for hits in found]

    with SearchClient(region.application, max_connections=2) as client, ThreadPoolExecutor(8) as threads:
        by_threads = [hits[0].text for hits in threads.map(lambda question: client.search(question, 1), questions)]

    assert by_threads == asyncio.run(ask_all())
    assert len(by_threads) == 40


def test_sessions_that_were_ended_are_replaced_and_nobody_is_told(region: Region, new_client: NewClient) -> None:
    client = new_client(region.application)
    before = client.search(QUESTION)
    with psycopg.connect(region.pipeline, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'embedding-assets client'"
        )

    assert client.search(QUESTION) == before


def test_a_search_that_waits_ends_at_its_time_out_and_the_next_one_is_answered(
    region: Region, new_client: NewClient
) -> None:
    client = new_client(region.application, timeout=1.5)
    with psycopg.connect(region.pipeline) as conn:
        conn.execute("LOCK TABLE embedding_assets.chunks")

        with pytest.raises(TransientError, match="Cure: ask again, or raise timeout"):
            client.search(QUESTION)

    assert client.search(QUESTION) != []


def test_a_server_that_has_ceased_to_answer_is_left_at_the_time_out(region: Region, new_client: NewClient) -> None:
    client = new_client(region.application, timeout=1.5)
    client.search(QUESTION)
    with psycopg.connect(region.pipeline) as conn:
        asked = "SELECT pid FROM pg_stat_activity WHERE application_name = 'embedding-assets client'"
        (pid,) = [pid for (pid,) in conn.execute(asked)]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TransientError, match=r"no answer within 1.5 s. Cure"):
            client.search(QUESTION)
    finally:
        os.kill(pid, signal.SIGCONT)

    assert client.search(QUESTION) != []


@pytest.mark.parametrize("question", ["", "  \n", "a\0b", "a\ud800", None, 5])
def test_what_is_no_question_is_refused(region: Region, new_client: NewClient, question: Any) -> None:
    with pytest.raises(PermanentError, match=r"the question .* Cure"):
        new_client(region.application).search(question)


@pytest.mark.parametrize("k", [0, -1, 10_001, 2**40, True, 2.5, None])
def test_k_has_bounds(region: Region, new_client: NewClient, k: Any) -> None:
    with pytest.raises(PermanentError, match=r"k is .* Cure: ask for 1 to 10,000 hits"):
        new_client(region.application).search(QUESTION, k)


@pytest.mark.parametrize("filter", [["team"], "team", {"team": "\0"}, {"team": float("nan")}])
def test_a_filter_that_metadata_cannot_contain_is_refused(region: Region, new_client: NewClient, filter: Any) -> None:
    with pytest.raises(PermanentError, match="Cure"):
        new_client(region.application).search(QUESTION, filter=filter)


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        ([1.0, 2.0], r"the shape \(2,\), the live model wordllama-64 has 64 dimensions"),
        ([[1.0] * 64], "the shape"),
        ([float("nan")] * 64, "zero, or not finite"),
        ([float("inf")] * 64, "zero, or not finite"),
        ([0.0] * 64, "zero, or not finite"),
    ],
)
def test_what_is_no_vector_of_the_live_model_is_refused(
    region: Region, new_client: NewClient, vector: Any, said: str
) -> None:
    with pytest.raises(PermanentError, match=said):
        new_client(region.application, embed=lambda question, model: vector).search(QUESTION)


def test_a_database_that_cannot_be_searched_is_told_with_its_cure(
    region: Region, database: str, new_client: NewClient
) -> None:
    wrong = make_conninfo(region.application, dbname="nowhere")
    stranger = make_conninfo(region.pipeline, user="a_stranger")
    with psycopg.connect(region.pipeline, autocommit=True) as admin:
        admin.execute("CREATE ROLE a_stranger LOGIN")
    try:
        for dsn, said in (
            (wrong, 'database "nowhere" does not exist. Cure: correct host, database'),
            (stranger, "permission denied for function live_model. Cure: GRANT embedding_search"),
            (make_conninfo(region.pipeline, dbname="postgres"), "does not exist. Cure: name a database"),
            (database, "no live model yet. Cure: Materialize"),
        ):
            with pytest.raises(PermanentError, match=said):
                new_client(dsn).search(QUESTION)
    finally:
        with psycopg.connect(region.pipeline, autocommit=True) as admin:
            admin.execute("DROP ROLE a_stranger")


def test_a_server_that_is_away_may_come_back(new_client: NewClient) -> None:
    with pytest.raises(TransientError, match="Cure: see that the database answers"):
        new_client("postgresql://somebody@127.0.0.1:1/nowhere").search(QUESTION)


def test_hybrid_that_is_not_enabled_says_how(database: str, new_client: NewClient) -> None:
    toy = Toy(shards=1, rows=3)
    with connect(database) as conn:
        bind(conn)
        toy.publish_to(conn)

    with pytest.raises(PermanentError, match=r"not enabled in this database. Cure: Add hybrid: \{language: english\}"):
        new_client(database, embed=lambda question, model: [1.0] * D1).hybrid(QUESTION)
