"""The words of a generation follow its rows, whatever happens to these, and are proved to."""

import pytest

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.indexes.index import build_indexes, invalid_indexes
from embedding_assets.pgvector.loading import delta
from embedding_assets.pgvector.publishing.forget import forget
from embedding_assets.pgvector.schema import language, words
from embedding_assets.pgvector.schema.generations import Generation, published_generation
from embedding_assets_tests.support.toy import Source, assert_serves, edited, row, shard_rows, source


def serving(conn: Connection, name: str = "handbook") -> Generation:
    generation = published_generation(conn, name)
    assert generation is not None
    return generation


def tables(conn: Connection) -> set[str]:
    rows = conn.execute("SELECT relname FROM pg_class WHERE relname ~ '^generation_.*_(words|lexemes)(_new)?$'")
    return {name for (name,) in rows}


@pytest.fixture
def published(region: Connection) -> Source:
    language.ensure_language(region, "english")
    first = source()
    first.publish(region)
    return first


@pytest.mark.parametrize("told", [True, False])
def test_a_delta_changes_the_words_with_the_rows(region: Connection, published: Source, told: bool) -> None:
    before = serving(region).id
    rows = published.shards[1]
    changed = published.changed(
        {1: [*edited(rows, 3, 4)[1:], row(190, content="an entirely new wording")], 2: published.shards[2][:-2]},
        told=told,
    )

    changed.publish(region)

    assert serving(region).id == before  # a delta
    assert words.mismatched(region, serving(region)) is None
    assert_serves(region, changed)
    found = region.execute(
        "SELECT documents, occurrences FROM embedding_assets.lexemes WHERE lexeme IN ('edit', 'word')"
    )
    assert found.fetchall() == [(2, 2), (1, 1)]


def test_a_new_generation_brings_its_own_words(region: Connection, published: Source) -> None:
    other = Source({shard: [row(n) for n in range(100 * shard + 50, 100 * shard + 80)] for shard in range(4)})

    other.publish(region)

    generation = serving(region)
    assert words.mismatched(region, generation) is None
    assert tables(region) == {f"generation_{generation.id}_{name}" for name in ("words", "lexemes")}
    assert region.execute("SELECT count(*) FROM embedding_assets.words").fetchone() == (120,)


def test_words_follow_the_language_of_the_settings_while_readers_go_on(region: Connection, published: Source) -> None:
    for chosen in ("simple", None, "german", "english"):
        language.ensure_language(region, chosen)
        build_indexes(region, published.name, published.root)

        generation = serving(region)
        assert language.is_wanted(region, language.language_of(region, generation), chosen)
        assert words.mismatched(region, generation) is None
        assert len(tables(region)) == (2 if chosen else 0)


def test_what_is_there_is_not_made_again(region: Connection, published: Source) -> None:
    before = region.execute("SELECT max(oid::bigint) FROM pg_class").fetchone()

    build_indexes(region, published.name, published.root)

    assert region.execute("SELECT max(oid::bigint) FROM pg_class").fetchone() == before


@pytest.mark.parametrize(
    ("statement", "cheaply"),
    [
        ("DELETE FROM embedding_assets.words WHERE shard = 2", True),
        ("UPDATE embedding_assets.words SET digest = digest + 1 WHERE shard = 2", True),
        ("UPDATE embedding_assets.words SET words = 'other:1' WHERE shard = 2", False),
        ("UPDATE embedding_assets.words SET length = 1", False),
        ("UPDATE embedding_assets.lexemes SET documents = 7 WHERE lexeme = ''", False),
        ("DELETE FROM embedding_assets.lexemes WHERE lexeme = 'text'", False),
    ],
)
def test_words_that_are_not_those_of_the_rows_are_noticed_and_made_again(
    region: Connection, published: Source, statement: str, cheaply: bool
) -> None:
    region.execute(statement.encode())
    generation = serving(region)

    assert (invalid_indexes(region, generation) != []) == cheaply
    assert any("words" in difference for difference in published.differences(region))
    words.rebuild(region, generation)

    assert published.differences(region) == []


def test_a_delta_on_words_that_are_not_in_step_is_rolled_back_with_a_cure(
    region: Connection, published: Source
) -> None:
    region.execute("DELETE FROM embedding_assets.words WHERE shard = 1")
    changed = published.changed({1: edited(published.shards[1], 3)})

    with pytest.raises(PermanentError, match=r"1 in the words with .*Cure: "):
        changed.publish(region)


def test_a_repair_replaces_the_words_of_its_shards(region: Connection, published: Source) -> None:
    region.execute("UPDATE embedding_assets.chunks SET content = 'tampered' WHERE shard = 1")
    region.execute("UPDATE embedding_assets.words SET shard = 1 WHERE shard = 2")
    build_indexes(region, published.name, published.root)  # makes them of what was tampered with

    delta.repair(
        region, published.name, published.root, published.refs, lambda ref: shard_rows(published.shards[ref.shard]), {1}
    )

    assert words.mismatched(region, serving(region)) is None
    assert_serves(region, published)


def test_a_source_that_is_forgotten_leaves_no_words(region: Connection, published: Source) -> None:
    forget(region, published.name)

    assert tables(region) == set()
