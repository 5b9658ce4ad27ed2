"""Readers never notice: applications query without pause while everything that a region goes through happens."""

import pytest

from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.schema.models import ensure_models
from embedding_assets_tests.support.readers import CLIENTS, Library, assert_published, clients, operations, wrong


@pytest.mark.parametrize(
    "library",
    [Library(), pytest.param(Library(shards=8, documents=125, dimensions=48), marks=pytest.mark.slow)],
    ids=str,
)
def test_no_client_meets_an_error_a_short_answer_or_half_a_document(database: str, library: Library) -> None:
    """Their connections stay open through all of it, with the statements that they prepared."""
    with connect(database) as conn:
        ensure_models(conn, library.models, "v1")
        library.reload(conn)

        with clients(database, library) as met:
            for name, operation in operations(database, conn, library):
                with met.during(name, answers=5 * CLIENTS):
                    published = operation()
                assert met.problems == []
                assert_published(conn, published)

    assert met.problems == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([("a", 0, "edition 1, x"), ("a", 1, "edition 1, y"), ("b", 0, "edition 2, z")], ""),
        (
            [("a", 0, "edition 1, x"), ("a", 1, "edition 2, y"), ("b", 0, "edition 2, z")],
            "['a'] in more than one edition",
        ),
        (
            [("a", 0, "edition 1, x"), ("a", 0, "edition 2, x"), ("b", 0, "edition 2, z")],
            "2 different chunks of 3, in 3 rows",
        ),
        ([("a", 0, "edition 1, x")], "1 different chunks of 3, in 1 rows"),
    ],
)
def test_the_clients_would_tell(found: list[tuple[str, int, str]], told: str) -> None:
    assert wrong(list(found), 3) == told
