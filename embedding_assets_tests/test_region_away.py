"""A region whose database cannot be used: sources and other regions go on, and it is told of once."""

from pathlib import Path

import psycopg
from psycopg import sql

from embedding_assets.operations.dead_letters import rejections_of
from embedding_assets.pgvector import embedded
from embedding_assets_tests.support.harness import PRIMARY, REGIONS, SOURCE, Sandbox


def test_a_primary_database_that_is_refused_stops_neither_sources_nor_other_regions(
    sandbox: Sandbox, postgres: Path
) -> None:
    admin_dsn = embedded.dsn(postgres, "postgres")
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
    try:
        sandbox.dsns[PRIMARY] = admin_dsn.replace("/postgres?", "/latin?")
        sandbox.write(a="# A\nplain text")

        ended = {outcome.partition: outcome for outcome in sandbox.materialize()}
    finally:
        with psycopg.connect(admin_dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier("latin")))

    (other,) = set(REGIONS) - {PRIMARY}
    assert ended[SOURCE].succeeded
    assert ended[f"{other}|{SOURCE}"].succeeded
    refused = ended[f"{PRIMARY}|{SOURCE}"]
    assert not refused.succeeded
    assert any("has the encoding LATIN1" in error and "Cure: " in error for error in refused.errors)


def test_several_stages_warn_once_of_dead_letters_that_cannot_be_reached(sandbox: Sandbox) -> None:
    sandbox.dsns[PRIMARY] = "postgresql://nobody@127.0.0.1:1/nowhere"
    warnings: list[str] = []

    for stage in ("raw_docs", "chunks"):
        with rejections_of(sandbox.deployment, SOURCE, stage, None, warnings.append) as rejections:
            assert rejections.known == []

    assert [warning.partition(" (")[0] for warning in warnings] == ["The dead letters on record can't be reached"]
