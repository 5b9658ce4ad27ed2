"""Hybrid search: what stands high by the words and by the vector at once."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import logistic

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.reading.search import HybridHit, search, search_hybrid, set_fusion_weight
from embedding_assets.pgvector.rows.shards import ShardRef
from embedding_assets.pgvector.schema import language
from embedding_assets.pgvector.schema.generations import Generation
from embedding_assets_tests.pgvector.test_search import literal, query
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import MODELS, Row, Toy, bind, row, shard_rows

WORDS = ["refund", "invoice", "login", "password", "shipping", "Müller", "C++", "e-mail"]


def content(seed: int) -> str:
    """Every number has the words whose bit it has, the first of them up to three times; 'needle' is in one text."""
    found = [word for bit, word in enumerate(WORDS) if seed >> bit & 1]
    return f"common text {seed} {' '.join(found[:1] * (seed % 3) + found)}" + (" needle" if seed == 137 else "")


ROWS = [row(seed, content=content(seed)) for seed in range(600)]
SOURCES = {None: range(600), "first": range(400), "second": range(400, 600)}
HAS = [{n for n in range(600) if n >> bit & 1} for bit in range(len(WORDS))]


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
        language.ensure_language(conn, "english")
        for source, rows in (("first", ROWS[:400]), ("second", ROWS[400:])):
            publish_rows(conn, source, rows)
        yield conn


@pytest.fixture(scope="module")
def frequencies(served: Connection) -> list[Counter[str]]:
    """How often each text has each lexeme, as Postgres parses it."""
    rows = served.execute(
        """
        SELECT array(SELECT lexeme FROM unnest(parsed)), array(SELECT cardinality(positions) FROM unnest(parsed))
        FROM unnest(%s::text[]) WITH ORDINALITY AS texts (content, number), to_tsvector('english', content) AS parsed
        ORDER BY number
        """,
        [[r.content for r in ROWS]],
    )
    return [Counter(dict(zip(lexemes, counts, strict=True))) for lexemes, counts in rows]


def numbers(hits: list[HybridHit]) -> list[int]:
    return [int(hit.content.split()[2]) for hit in hits]


def bm25(texts: dict[int, Counter[str]], lexemes: list[str]) -> dict[int, float]:
    """As the paper has it (k1 1.2, b 0.75)."""
    average = sum(sum(text.values()) for text in texts.values()) / len(texts)
    found = dict.fromkeys(texts, 0.0)
    for lexeme in lexemes:
        having = sum(lexeme in text for text in texts.values())
        weight = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for n, text in texts.items():
            norm = 1.2 * (1 - 0.75 + 0.75 * sum(text.values()) / average)
            found[n] += weight * text[lexeme] * 2.2 / (text[lexeme] + norm)
    return found


def standing(scores: dict[int, float]) -> dict[int, float]:
    """How unlikely by chance: -ln of the tail of a logistic distribution, by the hundred highest."""
    best = sorted(scores.values(), reverse=True)[:100]
    mean, spread = float(np.mean(best)), float(np.std(best)) or math.inf
    return {n: -float(logistic.logsf((score - mean) / spread * math.pi / math.sqrt(3))) for n, score in scores.items()}


def distances(vector: npt.NDArray[np.float32]) -> dict[int, float]:
    return {n: 1 - float(r.v1 @ vector) for n, r in enumerate(ROWS) if r.v1 is not None}


def test_a_chunk_that_only_its_word_gives_away_is_the_first(served: Connection) -> None:
    """Far from the vector: plain search does not have it."""
    assert ROWS[137].v1 is not None
    away = -ROWS[137].v1

    assert 137 not in [int(hit.content.split()[2]) for hit in search(served, away, 10)]
    assert numbers(search_hybrid(served, away, "needle", 10))[0] == 137


@settings(max_examples=30)
@given(
    asked=st.lists(st.sampled_from([("Refunds", "refund"), ("invoices", "invoic"), ("login", "login"), ("137", "137"),
                                    ("Müller", "müller"), ("common", "common"), ("nothing", "noth")]), unique=True),
    seed=st.integers(5_000_000, 5_000_050),
    k=st.integers(1, 50),
    source=st.sampled_from([None, "first", "second"]),
)  # fmt: skip
def test_the_score_is_that_of_bm25_and_the_distance_as_they_stand_among_their_best(
    served: Connection,
    frequencies: list[Counter[str]],
    asked: list[tuple[str, str]],
    seed: int,
    k: int,
    source: str | None,
) -> None:
    """Against both, and their fusion, written down here over all rows of what is searched."""
    vector = query(seed)
    among = {n: frequencies[n] for n in SOURCES[source]}
    by_words = bm25(among, [lexeme for _, lexeme in asked])
    by_vector = {n: -distance for n, distance in distances(vector).items() if n in among}
    nearest = sorted(among, key=lambda n: -by_vector[n])[:100]
    told, near = standing(by_words), standing(by_vector)
    farthest = near[nearest[-1]]  # what is farther than the hundredth counts as that
    with_words = sorted(
        (n for n in among if by_words[n] > 0), key=lambda n: (-by_words[n], n in SOURCES["second"], ROWS[n].chunk_id)
    )[:100]
    best = {*nearest, *with_words}
    expected = {n: 0.6 * max(near[n], farthest) + 0.4 * told[n] for n in best}

    found = search_hybrid(served, vector, " ".join(word for word, _ in asked), k, source)

    scores = [hit.score for hit in found]
    assert scores == pytest.approx(sorted(expected.values(), reverse=True)[:k], rel=1e-3, abs=1e-3)
    assert scores == pytest.approx([expected[n] for n in numbers(found)], rel=1e-3, abs=1e-3)


def test_occurrences_are_counted_up_to_all_that_a_vector_of_words_holds(served: Connection) -> None:
    rows = served.execute(
        """
        SELECT n, embedding_assets.occurrences(to_tsvector('simple', repeat('word ', n) || 'other'), 'word')
        FROM generate_series(0, 255) AS n
        """
    ).fetchall()

    assert [(n, counted) for n, counted in rows if n != counted] == []


@pytest.mark.parametrize(
    ("text", "lexemes", "condition", "allowed"),
    [
        ("Refunds of invoices", {"refund", "invoic"}, None, None),
        ("e-mail", {"e-mail", "e", "mail"}, None, None),
        ("refund or login", {"refund", "login"}, None, None),
        ('"refund invoices" login', {"refund", "invoic", "login"}, "'refund' <-> 'invoic'", None),
        ("refund -invoice", {"refund"}, "'refund' & !'invoic'", "!'invoic'"),
        ('needle or refund -"an invoice"', {"needl", "refund"}, "'needl' | 'refund' & !'invoic'", None),
        ('login -refund or "a needle" -refund', {"login", "needl"},
         "'login' & !'refund' | 'needl' & !'refund'", "!'refund' | !'refund'"),
        ("-invoice", set(), "!'invoic'", "!'invoic'"),
        ("--invoice", {"invoic"}, None, None),
        ("the of and", set(), None, None),
        ('-the "of the" or', set(), None, None),
        ('"unclosed phrase', {"unclos", "phrase"}, "'unclos' <-> 'phrase'", None),
        ("", set(), None, None),
    ],
)  # fmt: skip
def test_a_text_is_read_as_in_a_web_search_but_for_any_of_its_words(
    served: Connection, text: str, lexemes: set[str], condition: str | None, allowed: str | None
) -> None:
    found = served.execute(
        "SELECT lexemes, condition::text, allowed::text FROM embedding_assets.read_words('english', %s)", [text]
    ).fetchone()

    assert found is not None
    assert (set(found[0]), *found[1:]) == (lexemes, condition, allowed)


def test_what_is_excluded_is_in_no_hit(served: Connection) -> None:
    for text in ("refund -invoice", "-invoice"):
        found = search_hybrid(served, query(), text, 600)

        assert set(numbers(found)) == set(range(600)) - HAS[1]


def test_a_phrase_narrows_what_the_words_rank(served: Connection) -> None:
    def ranked(text: str) -> set[int]:
        rows = served.execute("SELECT chunk_id FROM embedding_assets.search_words(%s, 600, NULL)", [text])
        ids = {r.chunk_id: n for n, r in enumerate(ROWS)}
        return {ids[chunk_id.bytes] for (chunk_id,) in rows}

    assert ranked("refund invoices") == HAS[0] | HAS[1]
    assert ranked('"refund invoice"') == HAS[0] & HAS[1]
    assert ranked('"invoice refund"') == set()
    assert ranked('"invoice refund" or needle') == {137}
    assert len(search_hybrid(served, query(), '"invoice refund"', 600)) == 600  # by the vector


@pytest.mark.parametrize("text", ["", "the of and", "zzz", " "])
def test_without_a_word_that_counts_the_vector_ranks(served: Connection, text: str) -> None:
    found = search_hybrid(served, query(), text, 20)

    assert [hit[:6] for hit in found] == [hit[:6] for hit in search(served, query(), 20)]


@pytest.mark.parametrize(
    "text",
    ["'; DROP TABLE x; --", "a & | ! (", "\\", "'" * 50, "%s %1$s", "🙂 עברית", "x" * 100_000, ":*", "<->",
     "\\' | 'x", "- - -", '"' * 1001, "-" * 10_001, 'refund "\'" -\\'],
)  # fmt: skip
def test_any_text_is_only_text(served: Connection, text: str) -> None:
    assert len(search_hybrid(served, query(), text, 5)) == 5


def test_ten_thousand_words_take_no_time(served: Connection) -> None:
    """Of its first 10,000 characters the 32 rarest lexemes count."""
    text = " ".join(f"{word} {n}" for n, word in enumerate([*WORDS, "needle"] * 1200))

    with served.transaction():
        served.execute("SET LOCAL statement_timeout = '5s'")
        found = served.execute(
            "SELECT cardinality(lexemes) FROM embedding_assets.word_terms('english', %s, NULL, '{}', NULL)", [text]
        ).fetchone()

        assert found == (32,)
        assert len(search_hybrid(served, query(), text, 5)) == 5


def test_filters_and_sources_narrow_both_rankings(served: Connection) -> None:
    found = search_hybrid(served, query(), "refund", 30, "second", {"team": "3"})

    assert {hit.source for hit in found} == {"second"}
    assert {hit.metadata["team"] for hit in found} == {"3"}
    assert len(found) == 20  # as many as there are


def test_where_more_chunks_have_a_word_than_are_ranked_those_with_all_of_them_are(served: Connection) -> None:
    """With a bound of fifty in place of five thousand."""
    with served.transaction(force_rollback=True):
        served.execute(
            """
            DO $$ BEGIN EXECUTE replace(
                pg_get_functiondef('embedding_assets.word_terms'::regproc), 'integer := 5000', 'integer := 50'
            ); END $$
            """
        )
        rows = served.execute("SELECT ordinal, chunk_id FROM embedding_assets.search_words('refund login', 600, NULL)")
        ids = {r.chunk_id: n for n, r in enumerate(ROWS)}
        ranked = [ids[chunk_id.bytes] for _, chunk_id in rows]

    assert len(ranked) == 100
    assert set(ranked[:40]) <= HAS[0] & HAS[2]


def test_a_weight_chosen_for_a_source_and_the_live_model_holds_there_alone(served: Connection) -> None:
    with served.transaction(force_rollback=True):
        set_fusion_weight(served, "first", MODELS["v1"].name, 1.0, {})
        set_fusion_weight(served, "second", "another model", 1.0, {})

        first, second = (search_hybrid(served, query(), "refund", 20, source) for source in ("first", "second"))

        assert [hit.ordinal for hit in first] == [hit.ordinal for hit in search(served, query(), 20, "first")]
    assert second == search_hybrid(served, query(), "refund", 20, "second")


def test_where_it_is_not_enabled_it_says_how(region: Connection) -> None:
    Toy().publish_to(region)
    with pytest.raises(PermanentError, match=r"(?s)not enabled in this database.*hybrid: \{language: english\}"):
        search_hybrid(region, query(), "refund", 5)


def test_a_language_that_the_database_does_not_know_is_refused_with_those_it_does(region: Connection) -> None:
    with pytest.raises(PermanentError, match=r"no text search configuration 'klingon'.*english.*simple"):
        language.ensure_language(region, "klingon")


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


def test_any_client_can_call_it_by_name(served: Connection) -> None:
    found = served.execute(
        "SELECT score FROM search_hybrid(query => %s, query_text => 'refund', k => 3, source => 'first')",
        [literal(query())],
    ).fetchall()
    assert len(found) == 3


def test_what_was_published_without_words_is_searched_by_rank_until_a_run_has_made_them(region: Connection) -> None:
    """The score is the sum of reciprocal ranks: all texts are equally good by words, and so both go by distance."""
    publish_rows(region, "first", ROWS[:400])
    language.ensure_language(region, "english")

    found = search_hybrid(region, query(), "common", 20)
    build_indexes(region, "first", f"{hash('first'):x}")
    now = search_hybrid(region, query(), "common", 20)

    nearest = sorted(SOURCES["first"], key=distances(query()).__getitem__)[:20]
    assert numbers(found) == nearest
    assert [hit.score for hit in found] == pytest.approx([2 / (60 + place) for place in range(1, 21)])
    assert now[0].score != found[0].score
