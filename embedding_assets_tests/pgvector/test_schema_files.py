"""What `make schema` writes: the committed files are those, and schema.sql is what the migrations lead to."""

import difflib
import re
from pathlib import Path

import psycopg
import pytest

from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.schema import surface
from embedding_assets_tests.support import schema_files

CURE = "Cure: make schema"


def test_the_surface_has_another_number_whenever_its_text_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = schema_files.VERSION.read_text()
    assert schema_files.surface_version() == written, CURE

    changed = {**surface.texts(), "tables": "-- another text"}
    monkeypatch.setattr(surface, "texts", lambda: changed)
    assert schema_files.surface_version().split()[0] == str(int(written.split()[0]) + 1)


def test_no_committed_migration_has_changed() -> None:
    listed = dict(line.split()[::-1] for line in schema_files.HISTORY.read_text().splitlines())
    for name, recorded in listed.items():
        text = (schema_files.SQL / "migrations" / name).read_text()
        assert surface.digest(text) == recorded, f"{name} has changed: write a new migration"
    assert schema_files.history() == schema_files.HISTORY.read_text(), CURE


def test_schema_sql_is_what_the_migrations_and_the_surface_lead_to(database: str) -> None:
    assert difference(schema_files.SCHEMA.read_text(), schema_files.schema(database)) == [], CURE


def test_a_database_made_by_schema_sql_alone_is_the_same(postgres: Path, database: str) -> None:
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        admin.execute('CREATE DATABASE "schema alone" TEMPLATE template0')
    try:
        dsn = embedded.dsn(postgres, "schema alone")
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(schema_files.SCHEMA.read_bytes())

        assert difference(schema_files.dump(dsn), schema_files.dump(database)) == []
    finally:
        with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
            admin.execute('DROP DATABASE "schema alone" WITH (FORCE)')


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE embedding_assets.recall ADD COLUMN more integer",
        "COMMENT ON COLUMN public.live_chunks.content IS 'another'",
        "REVOKE SELECT ON public.live_chunks FROM embedding_search",
        "ALTER FUNCTION public.live_model() VOLATILE",
        "DROP INDEX embedding_assets.models_one_live",
        "UPDATE embedding_assets.surface SET language = 'pg_catalog.english'",
    ],
)
def test_a_difference_is_seen(database: str, change: str) -> None:
    before = schema_files.dump(database)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(change.encode())

    assert difference(before, schema_files.dump(database)) != []


def test_schema_sql_has_no_noise() -> None:
    written = schema_files.SCHEMA.read_text()
    assert not re.search(r"-- Dumped|-- Name:|restrict|yoyo_|postgres;|\n\n\n", written)


def difference(one: str, other: str) -> list[str]:
    return list(difflib.unified_diff(one.splitlines(), other.splitlines(), n=1, lineterm=""))
