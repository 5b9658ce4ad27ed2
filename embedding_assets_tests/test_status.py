"""What `status` says of sources and regions, and what it takes to know it."""

from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from embedding_assets.operations import status as module
from embedding_assets.operations.status import is_current, status
from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.pgvector.connection import connect
from embedding_assets_tests.support.harness import PRIMARY, REGIONS, SOURCE, Sandbox


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    """Two sources, of which the primary region serves one."""
    sandbox.write(refunds="Refunds take five days.")
    (sandbox.root / "other").mkdir()
    (sandbox.root / "other" / "note.md").write_text("A note.")
    box = replace(sandbox, sources={"notes": {"kind": "files", "path": str(sandbox.root / "other")}})
    with dg.DagsterInstance.ephemeral() as instance:
        assert box.execute(SOURCE_JOB, SOURCE, instance).success
        assert box.execute(REGION_JOB, f"{PRIMARY}|{SOURCE}", instance).success
    return box


def test_each_region_is_asked_once_for_all_sources(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(dsn: str) -> Any:
        asked.append(dsn)
        return connect(dsn)

    monkeypatch.setattr(module, "connect", counted)

    rows = status(box.deployment, [SOURCE, "notes"], REGIONS)

    assert sorted(asked) == sorted(box.dsns.values())
    assert {(row.source, row.region): (row.rows, row.current) for row in rows} == {
        (SOURCE, PRIMARY): (1, True),
        (SOURCE, "eu-west-1"): (0, False),
        ("notes", PRIMARY): (0, False),
        ("notes", "eu-west-1"): (0, False),
    }


def test_a_region_that_is_away_has_its_error_and_the_others_are_told_of(box: Sandbox) -> None:
    away = replace(box, dsns={**box.dsns, "eu-west-1": "postgresql://nobody@127.0.0.1:9/nothing"})

    rows = {row.region: row for row in status(away.deployment, [SOURCE], REGIONS)}

    assert rows[PRIMARY].current
    assert rows[PRIMARY].error is None
    assert not rows["eu-west-1"].current
    assert "127.0.0.1" in (rows["eu-west-1"].error or "")
    assert (is_current(away.deployment, PRIMARY, SOURCE), is_current(away.deployment, "eu-west-1", SOURCE)) == (
        True, False,
    )  # fmt: skip
