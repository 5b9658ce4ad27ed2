"""A region whose database cannot be used: sources and other regions go on, and it is told of once."""

from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from embedding_assets.cli import runs
from embedding_assets.cli.screen import Screen
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


@pytest.mark.slow
def test_a_language_that_one_region_lacks_fails_it_alone_whether_or_not_a_document_changed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(sandbox.root / "dagster"))
    (other,) = set(REGIONS) - {PRIMARY}
    with psycopg.connect(sandbox.dsns[other], autocommit=True) as admin:
        admin.execute("CREATE TEXT SEARCH CONFIGURATION klingon (COPY = simple)")
    box = replace(sandbox, more={"hybrid": {"language": "klingon"}})

    def ended(box: Sandbox) -> dict[str, bool]:
        outcomes = runs.materialize(box.deployment, Screen(stderr=True), sources=[SOURCE], regions=REGIONS)
        return {outcome.partition: runs.is_well(outcome) for outcome in outcomes}

    sandbox.write(a="# A\nplain text")
    assert all(ended(sandbox).values())
    capsys.readouterr()

    # The words of both are to be made, in this language.
    assert ended(box) == {SOURCE: True, f"{PRIMARY}|{SOURCE}": False, f"{other}|{SOURCE}": True}
    told = " ".join(capsys.readouterr().err.split())
    assert f"{PRIMARY}|{SOURCE}: " in told
    assert "no text search configuration 'klingon'" in told
    assert "Cure: " in told

    sandbox.write(a="# A\nanother text")
    assert ended(box) == {SOURCE: True, f"{PRIMARY}|{SOURCE}": False, f"{other}|{SOURCE}": True}
    assert capsys.readouterr().err.count("no text search configuration") == 1
