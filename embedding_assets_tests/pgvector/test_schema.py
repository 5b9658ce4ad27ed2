"""The tables of a region: migrations that may be run at any time, and models that cannot be mixed up."""

import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.reading.search import search
from embedding_assets.pgvector.rows.vector_types import EMPTY
from embedding_assets.pgvector.schema import migrations
from embedding_assets.pgvector.schema.models import Model, bound_models, bound_types, ensure_models, is_bound
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import D1, D2, MODELS, Toy, assert_serves, bind, row, source

TABLES = [
    "chunks", "comparisons", "dead_letters", "fusion", "generations", "ledger", "lexemes", "lock_schema",
    "model_changes", "models", "readers", "recall", "surface", "surface_files", "words",
]  # fmt: skip


def tables(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'embedding_assets'::regnamespace "
            "AND relkind IN ('r', 'p') AND relname !~ 'yoyo' ORDER BY 1"
        )
        return [name for (name,) in rows]


def test_migrating_a_migrated_database_writes_nothing(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        before = conn.execute("SELECT max(xmin::text::bigint) FROM pg_class").fetchone()
        migrations.migrate(database)
        assert conn.execute("SELECT max(xmin::text::bigint) FROM pg_class").fetchone() == before


def test_many_that_migrate_a_new_database_at_once_migrate_it_once(postgres: Path) -> None:
    dsn = embedded.dsn(postgres, "migrated at once")
    failures: list[BaseException] = []

    def migrate() -> None:
        try:
            migrations.migrate(dsn)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert tables(dsn) == TABLES


def test_a_process_killed_before_a_migration_was_recorded_does_no_harm(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        for table in ("migration", "version", "log"):
            conn.execute(f"DROP TABLE embedding_assets._yoyo_{table}".encode())
        conn.execute("INSERT INTO embedding_assets.yoyo_lock (pid) VALUES (1)")

    migrations.migrate(database)

    assert tables(database) == TABLES


def test_a_database_migrated_by_a_newer_program_is_refused(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "UPDATE embedding_assets._yoyo_migration SET migration_id = '9999_future' WHERE migration_id ~ '0002'"
        )

    with pytest.raises(PermanentError, match=r"newer version of this project .*9999_future"):
        migrations.migrate(database)


@pytest.mark.parametrize("version", ["0.5.1", "0.8.3", "0.8"])
def test_pgvector_below_0_8_4_is_refused_with_the_reason(version: str) -> None:
    with pytest.raises(PermanentError, match="CVE-2026-3172"):
        migrations.refuse_old_pgvector(version)


def test_postgres_below_14_is_refused_with_the_reason() -> None:
    with pytest.raises(PermanentError, match=r"PostgreSQL 13 is too old: .* Cure: upgrade the server"):
        migrations.refuse_old_postgres(130_022)
    migrations.refuse_old_postgres(140_000)


@pytest.mark.parametrize("version", ["0.8.4", "0.8.5", "0.10.0", "1.0"])
def test_pgvector_from_0_8_4_on_is_taken(version: str) -> None:
    migrations.refuse_old_pgvector(version)


def test_too_many_dimensions_are_refused_before_anything_is_changed(database: str) -> None:
    with connect(database) as conn:
        with pytest.raises(PermanentError, match="4096 dimensions cannot be indexed"):
            ensure_models(conn, {**MODELS, "v2": Model("large", 4096, "test")}, "v1")
        assert bound_models(conn) == {}


def test_columns_have_the_type_that_their_dimensions_ask_for(database: str) -> None:
    with connect(database) as conn:
        bind(conn, 2000, 2001)
        types = conn.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = 'embedding_assets.chunks'::regclass AND attname ~ '^embedding_' ORDER BY 1"
        ).fetchall()
    assert types == [("embedding_v1", "vector(2000)"), ("embedding_v2", "halfvec(2001)")]


def test_halfvec_is_to_be_had_below_too(database: str) -> None:
    with connect(database) as conn:
        bind(conn, 8, 2000, halfvec=["v2"])
        assert bound_types(conn) == (("vector", 8), ("halfvec", 2000))
        assert conn.execute(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = 'embedding_assets.chunks'::regclass AND attname = 'embedding_v2'"
        ).fetchone() == ("halfvec(2000)",)


def test_a_slot_that_is_not_live_goes_over_to_halfvec_and_is_loaded_again(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)

    bind(region, halfvec=["v2"])

    assert len(search(region, row(0).v1, 5)) == 5  # type: ignore[arg-type]
    toy.publish_to(region)
    assert compare(region, toy.name, toy.refs, toy.read) == []
    bind(region, live="v2", halfvec=["v2"])
    assert len(search(region, row(0).v2, 5)) == 5  # type: ignore[arg-type]


def test_the_live_slot_cannot_go_over_to_halfvec(region: Connection) -> None:
    Toy().publish_to(region)

    with pytest.raises(PermanentError, match=r"toy-8 \(vector\(8\)\) and cannot become toy-8 \(halfvec\(8\)\)"):
        bind(region, halfvec=["v1"])


def test_the_live_model_may_be_called_by_another_of_its_names(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)
    renamed = Model("the-models-own-name", D1, "test", other_names=(MODELS["v1"].name,))

    for _ in range(2):
        ensure_models(region, {**MODELS, "v1": renamed}, "v1")

    assert bound_models(region)["v1"].model == renamed.recorded
    assert compare(region, toy.name, toy.refs, toy.read) == []
    assert len(search(region, row(0).v1, 5)) == 5  # type: ignore[arg-type]


def test_binding_the_same_models_again_takes_no_lock(region: Connection, database: str) -> None:
    with psycopg.connect(database) as reader:
        reader.execute("LOCK TABLE embedding_assets.chunks, embedding_assets.models IN EXCLUSIVE MODE")
        bind(region)


def test_the_live_slot_cannot_be_bound_to_another_model(region: Connection) -> None:
    Toy().publish_to(region)

    with pytest.raises(PermanentError, match=r"slot v1 is live with model toy-8.*Bind the new model to v2"):
        bind(region, d1=16)

    assert bound_types(region) == (("vector", 8), ("vector", 12))


def test_where_nothing_is_published_any_slot_may_be_bound_anew(region: Connection) -> None:
    load_generation(region, "handbook", Toy().root, Toy().refs, Toy().read)

    bind(region, d1=16)
    Toy(d1=16).publish_to(region)

    assert region.execute("SELECT DISTINCT vector_dims(embedding) FROM live_chunks").fetchall() == [(16,)]


def test_a_slot_that_is_not_live_may_be_bound_anew_while_searches_go_on(region: Connection) -> None:
    toy = Toy()
    toy.publish_to(region)
    query = toy.rows_of(1)[3].v1
    assert query is not None
    before = search(region, query, 5)

    bind(region, d2=16)

    assert search(region, query, 5) == before
    with pytest.raises(PermanentError, match="slot v2 cannot become live: it has no vectors yet for source 'handbook'"):
        bind(region, d2=16, live="v2")
    renewed = Toy(d2=16)
    renewed.publish_to(region)
    bind(region, d2=16, live="v2")
    assert len(search(region, row(0, d2=16).v2, 5)) == 5  # type: ignore[arg-type]


def test_binding_a_model_back_loads_its_vectors_again(region: Connection) -> None:
    """The root is the one that was published before, and the column has been emptied since."""
    toy = Toy()
    toy.publish_to(region)
    bind(region, d2=16)
    bind(region, d2=D2)

    assert load_generation(region, toy.name, toy.root, toy.refs, toy.read).rows_written == len(toy.all_rows())


def test_another_address_of_the_same_model_is_recorded_and_binds_nothing_anew(region: Connection) -> None:
    source().publish(region)
    moved = {slot: model._replace(endpoint={"base_url": "http://127.0.0.1:1/v1"}) for slot, model in MODELS.items()}

    ensure_models(region, moved, "v1")

    assert region.execute("SELECT endpoint FROM live_model()").fetchone() == ({"base_url": "http://127.0.0.1:1/v1"},)
    assert is_bound(region, MODELS)
    assert_serves(region, source())


def test_switching_the_live_model_is_seen_by_search_and_by_prepared_statements(
    region: Connection, database: str
) -> None:
    toy = Toy()
    toy.publish_to(region)
    with psycopg.connect(database, autocommit=True) as reader:
        statement = "SELECT vector_dims(embedding) FROM live_chunks LIMIT 1"
        for _ in range(8):
            assert reader.execute(statement, prepare=True).fetchone() == (8,)

        bind(region, live="v2")

        assert reader.execute(statement, prepare=True).fetchone() == (12,)
        found = search(reader, toy.rows_of(0)[0].v2, 1)  # type: ignore[arg-type]
        assert found[0].distance == pytest.approx(0, abs=1e-6)
        bind(region, live="v1")
        assert reader.execute(statement, prepare=True).fetchone() == (8,)


def test_the_live_slot_must_be_bound(region: Connection) -> None:
    with pytest.raises(PermanentError, match=r"the models bound are v1, the first one to be live is v2\. Cure: bind"):
        ensure_models(region, {"v1": MODELS["v1"]}, "v2")


def test_an_empty_slot_has_a_column_and_no_model(database: str) -> None:
    with connect(database) as conn:
        ensure_models(conn, {"v2": MODELS["v2"]}, "v2")

        assert set(bound_models(conn)) == {"v2"}
        assert bound_types(conn) == (EMPTY, MODELS["v2"].type)


def test_a_database_that_is_not_there_is_no_reason_to_retry(
    new_database: Callable[[], str],
) -> None:
    with pytest.raises(PermanentError, match="does not exist"):
        connect(new_database().replace("/test_", "/nowhere_"))
