"""Hybrid search: what stands high by the words and by the vector at once."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes import inverted
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.loading.generations import load_generation
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.reading.search import HybridHit, search, search_hybrid
from embedding_assets.pgvector.rows.shards import ShardRef
from embedding_assets.pgvector.schema.generations import Generation
from embedding_assets_tests.pgvector.test_search import literal, query
from embedding_assets_tests.support.toy import Row, Toy, bind, row, shard_rows

WORDS = ["refund", "invoice", "login", "password", "shipping", "Müller", "C++", "e-mail"]


def content(seed: int) -> str:
    """Every number has the words whose bit it has; 'common' is everywhere, 'needle' in one text."""
    words = [word for bit, word in enumerate(WORDS) if seed >> bit & 1]
    return f"common text {seed} {' '.join(words)}" + (" needle" if seed == 137 else "")


ROWS = [row(seed, content=content(seed)) for seed in range(600)]


def publish_rows(conn: Connection, source: str, rows: list[Row]) -> Generation:
    read = shard_rows(rows)
    ref = ShardRef(0, f"{hash(source):x}", len(rows))
    load_generation(conn, source, ref.key, [ref], lambda _: read)
    build_indexes(conn, source, ref.key)
    return publish(conn, source, ref.key, [ref])


@pytest.fixture(scope="module")
def served(search_database: str) -> Iterator[Connection]:
    with connect(search_database) as conn:
        bind(conn)
        inverted.ensure_language(conn, "english")
        for source, rows in (("first", ROWS[:400]), ("second", ROWS[400:])):
            inverted.ensure_inverted_indexes(conn, publish_rows(conn, source, rows))
        yield conn


def numbers(hits: list[HybridHit]) -> list[int]:
    return [int(hit.content.split()[2]) for hit in hits]


def places(vector: np.ndarray[tuple[int], np.dtype[np.float32]], among: list[int]) -> dict[int, int]:
    """The place, from 1, of each number by distance."""
    distances = {n: 1 - float(ROWS[n].v1 @ vector) for n in among}  # type: ignore[operator]
    return {n: place for place, n in enumerate(sorted(among, key=distances.__getitem__), start=1)}


def test_a_chunk_that_only_its_word_gives_away_is_found(served: Connection) -> None:
    """Far from the vector: plain search does not have it."""
    assert ROWS[137].v1 is not None
    away = -ROWS[137].v1

    assert 137 not in [int(hit.content.split()[2]) for hit in search(served, away, 10)]
    found = search_hybrid(served, away, "needle", 10)

    assert 137 in numbers(found)
    assert found[numbers(found).index(137)].score == pytest.approx(1 / 61)


def test_the_score_is_the_sum_of_reciprocal_ranks(served: Connection) -> None:
    """Where all texts are equally good by words, both rankings go by distance: the n-th has 2 / (60 + n)."""
    found = search_hybrid(served, query(), "common", 20)

    nearest = places(query(), list(range(600)))
    assert numbers(found) == sorted(nearest, key=nearest.__getitem__)[:20]
    assert [hit.score for hit in found] == pytest.approx([2 / (60 + place) for place in range(1, 21)])


@settings(max_examples=40)
@given(
    word=st.sampled_from(["nothing", *WORDS[:5]]),
    seed=st.integers(5_000_000, 5_000_050),
    k=st.integers(1, 50),
    source=st.sampled_from([None, "first", "second"]),
)
def test_it_ranks_as_the_paper_says(served: Connection, word: str, seed: int, k: int, source: str | None) -> None:
    """Against a fusion written down here: texts with the word are equally good by it, and then go by distance."""
    vector = query(seed)
    among = list({None: range(600), "first": range(400), "second": range(400, 600)}[source])
    depth = 60 + 2 * k
    by_distance = {n: place for n, place in places(vector, among).items() if place <= depth}
    fitting = [n for n in among if word in content(n).split()]
    by_words = {n: place for n, place in places(vector, fitting).items() if place <= depth}
    scores = {
        n: sum(1 / (60 + ranking[n]) for ranking in (by_distance, by_words) if n in ranking)
        for n in by_distance.keys() | by_words.keys()
    }

    found = search_hybrid(served, vector, word, k, source)

    assert [hit.score for hit in found] == pytest.approx(sorted(scores.values(), reverse=True)[:k], rel=1e-3)
    assert len(set(numbers(found))) == len(found) == min(k, len(among))


def test_words_are_read_as_in_a_web_search(served: Connection) -> None:
    def with_words(text: str) -> set[int]:
        """What the ranking by words had: scores above those of the ranking by distance alone."""
        found = search_hybrid(served, query(), text, 600)
        by_distance = places(query(), list(range(600)))
        return {n for n, hit in zip(numbers(found), found, strict=True) if hit.score > 1 / (60 + by_distance[n]) + 1e-9}

    has = [{n for n in range(600) if n >> bit & 1} for bit in range(len(WORDS))]
    assert with_words("refund invoices") == has[0] & has[1]  # stemmed
    assert with_words("needle or refund -invoice") == {137} | (has[0] - has[1])
    assert with_words('"refund invoice"') == has[0] & has[1]
    assert with_words('"invoice refund"') == set()
    assert with_words("müller") == has[5]
    assert with_words("the of and") == with_words("") == set()


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE x; --", "a & | ! (", "\\", "'" * 50, "%s %1$s", "🙂 עברית", "x" * 100_000, ":*", "<->"]
)
def test_any_text_is_only_text(served: Connection, text: str) -> None:
    assert len(search_hybrid(served, query(), text, 5)) == 5


def test_filters_and_sources_narrow_both_rankings(served: Connection) -> None:
    found = search_hybrid(served, query(), "refund", 30, "second", {"team": "3"})

    assert {hit.source for hit in found} == {"second"}
    assert {hit.metadata["team"] for hit in found} == {"3"}
    assert len(found) == 20  # as many as there are


def test_the_words_are_looked_up_in_their_index(served: Connection) -> None:
    counted = "SELECT sum(pg_stat_get_xact_numscans(oid))::integer FROM pg_class WHERE relname ~ %s"
    with served.transaction():
        words, tables = "^generation_.*_words_pg_catalog_english$", "^generation_\\d+$"
        before = [served.execute(counted, [names]).fetchone() for names in (words, tables)]
        search_hybrid(served, query(), "needle", 5)
        after = [served.execute(counted, [names]).fetchone() for names in (words, tables)]
    assert [a[0] - b[0] for a, b in zip(after, before, strict=True) if a and b] == [2, 0]


def test_where_it_is_not_enabled_it_says_how(region: Connection) -> None:
    Toy().publish_to(region)
    with pytest.raises(PermanentError, match=r"(?s)not enabled in this database.*hybrid: \{language: english\}"):
        search_hybrid(region, query(), "refund", 5)


def test_a_language_that_the_database_does_not_know_is_refused_with_those_it_does(region: Connection) -> None:
    with pytest.raises(PermanentError, match=r"no text search configuration 'klingon'.*english.*simple"):
        inverted.ensure_language(region, "klingon")


def test_a_null_text_and_wrong_dimensions_are_refused(served: Connection) -> None:
    with pytest.raises(PermanentError, match="needs a query text"):
        search_hybrid(served, query(), None, 5)  # type: ignore[arg-type]
    with pytest.raises(PermanentError, match="the query has 2 dimensions"):
        search_hybrid(served, [1.0, 2.0], "refund", 5)


@pytest.mark.parametrize("k", [0, -1, 10_001, 1_100_000_000, 2_147_483_647])
def test_k_has_bounds(served: Connection, k: int) -> None:
    with pytest.raises(PermanentError, match=f"k from 1 to 10000, not {k}"):
        search_hybrid(served, query(), "refund", k)
    assert len(search_hybrid(served, query(), "refund", 10_000)) == 600


# Its index


def inverted_indexes(conn: Connection) -> dict[str, bool]:
    return dict(
        conn.execute(
            "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid "
            "WHERE relname ~ '^generation_\\d+_(metadata|words.*)$'"
        ).fetchall()
    )


def test_the_index_follows_the_settings_while_readers_go_on(region: Connection) -> None:
    generation = Toy().publish_to(region)

    for language, expected in (
        (None, {"generation_1_metadata"}),
        ("english", {"generation_1_metadata", "generation_1_words_pg_catalog_english"}),
        ("simple", {"generation_1_metadata", "generation_1_words_pg_catalog_simple"}),
        (None, {"generation_1_metadata"}),
    ):
        inverted.ensure_language(region, language)
        inverted.ensure_inverted_indexes(region, generation)
        assert inverted_indexes(region) == dict.fromkeys(expected, True)


def test_what_is_there_is_not_built_again(region: Connection) -> None:
    generation = Toy().publish_to(region)
    inverted.ensure_language(region, "english")
    inverted.ensure_inverted_indexes(region, generation)
    before = region.execute("SELECT max(oid::bigint) FROM pg_class").fetchone()

    inverted.ensure_language(region, "english")
    inverted.ensure_inverted_indexes(region, generation)

    assert region.execute("SELECT max(oid::bigint) FROM pg_class").fetchone() == before


def test_an_index_left_invalid_is_made_anew(region: Connection) -> None:
    generation = Toy().publish_to(region)
    inverted.ensure_inverted_indexes(region, generation)
    region.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'embedding_assets.generation_1_metadata'::regclass"
    )

    inverted.ensure_inverted_indexes(region, generation)

    assert inverted_indexes(region) == {"generation_1_metadata": True}


def test_any_client_can_call_it_by_name(served: Connection) -> None:
    found = served.execute(
        "SELECT score FROM search_hybrid(query => %s, query_text => 'refund', k => 3, source => 'first')",
        [literal(query())],
    ).fetchall()
    assert len(found) == 3
