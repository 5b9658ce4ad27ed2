"""What `status` says of sources and regions, and what it takes to know it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import dagster as dg
import pytest
from click.testing import CliRunner

from embedding_assets.cli import cli
from embedding_assets.operations.status import SourceStatus, is_behind, is_current, status
from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.orchestration.build import build_defs
from embedding_assets.snapshots import log
from embedding_assets.snapshots.stores import Store
from embedding_assets_tests.support.asked import Asked, name_of
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


def test_each_region_is_asked_once_for_all_sources_and_orphans(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in box.environment().items():
        monkeypatch.setenv(name, value)
    asked = Asked(monkeypatch)
    served, nothing = name_of(box.dsns[PRIMARY]), name_of(box.dsns["eu-west-1"])

    rows = json.loads(CliRunner().invoke(cli, ["status", "--json"]).stdout)

    assert asked.connections == {served: 1, nothing: 1}
    # Two to set a connection up, three for the role, ten for the region; four for each source that it serves.
    assert asked.statements[nothing] <= 15
    assert asked.statements[served] <= asked.statements[nothing] + 4
    assert {(row["source"], row["region"]): (row["rows"], row["current"]) for row in rows} == {
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


def at(row: SourceStatus) -> tuple[bool, bool]:
    return row.current, row.problem is None


@pytest.mark.parametrize("trouble", ["unreadable", "mass delete", "unreadable to the sweep"])
def test_a_source_that_could_not_be_brought_up_to_date_is_not_current_until_it_is(box: Sandbox, trouble: str) -> None:
    box.write(returns="Returns are free.", fees="There are none.")
    with dg.DagsterInstance.ephemeral() as instance:
        assert box.execute(SOURCE_JOB, SOURCE, instance).success
        assert box.execute(REGION_JOB, f"{PRIMARY}|{SOURCE}", instance).success
        (before,) = status(box.deployment, [SOURCE], [PRIMARY])
        if trouble == "mass delete":
            (box.docs / "fees.md").rename(box.root / "fees.md")
        else:
            box.docs.rename(box.root / "away")
        if trouble == "unreadable to the sweep":
            sweep(box, instance)
        else:
            assert not box.execute(SOURCE_JOB, SOURCE, instance).success
        (during,) = status(box.deployment, [SOURCE], [PRIMARY])
        if trouble == "mass delete":
            (box.root / "fees.md").rename(box.docs / "fees.md")
        else:
            (box.root / "away").rename(box.docs)
        if trouble == "unreadable to the sweep":
            sweep(box, instance)
        else:
            assert box.execute(SOURCE_JOB, SOURCE, instance).success
        (after,) = status(box.deployment, [SOURCE], [PRIMARY])

    assert at(before) == at(after) == (True, True)
    assert not during.current
    assert during.looked_at == before.looked_at
    assert "Cure:" in (during.problem or "")
    assert during.lag_seconds is not None
    assert (is_behind(during, 0), is_behind(during, 3600)) == (True, False)


def sweep(box: Sandbox, instance: dg.DagsterInstance) -> None:
    definitions = build_defs(box.deployment)
    with dg.build_sensor_context(
        instance=instance, definitions=definitions, resources={"deployment": box.deployment}
    ) as context:
        definitions.resolve_sensor_def("source_sweep").evaluate_tick(context)


@pytest.mark.parametrize(
    ("asset", "harm"), [("raw_docs", "lost"), ("raw_docs", "cut short"), ("chunks", "lost"), ("embeddings_v2", "lost")]
)
def test_a_source_whose_store_has_lost_a_part_is_not_current_and_no_part_is_read(
    box: Sandbox, asset: str, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = log.head(box.deployment.primary, asset, SOURCE)
    assert head is not None
    path = head.layers[0].path(SOURCE)
    file = box.root / "stores" / PRIMARY / path
    file.unlink() if harm == "lost" else file.write_bytes(file.read_bytes()[:-1])
    read: list[str] = []
    get = Store.get

    def noted(store: Store, path: str, *, at_most: int | None = None) -> bytes | None:
        read.append(path)
        return get(store, path, at_most=at_most)

    monkeypatch.setattr(Store, "get", noted)

    (row,) = status(box.deployment, [SOURCE], [PRIMARY])

    assert not row.current
    assert is_behind(row, 0)
    assert f"{path} lost, or of another size than recorded. Cure: embedding-assets materialize" in (row.problem or "")
    assert [path for path in read if path.startswith("parts/")] == []


def test_a_source_whose_run_ended_half_way_is_not_current(box: Sandbox) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        box.write(refunds="Refunds take six days.")
        assert box.execute(SOURCE_JOB, SOURCE, instance, assets=["raw_docs"]).success

    (row,) = status(box.deployment, [SOURCE], [PRIMARY])

    assert not row.current
    assert row.problem == "chunks was not derived from the newest raw_docs. Cure: embedding-assets materialize"


def test_the_lag_is_that_of_the_first_commit_that_a_region_does_not_serve(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that changes each hour does not keep the lag of a region that stands still below an hour."""
    now = datetime.now(UTC)
    with dg.DagsterInstance.ephemeral() as instance:
        for hours, text in ((5, "six"), (3, "seven")):
            clock = SimpleNamespace(now=lambda zone, hours=hours: now - timedelta(hours=hours))
            with monkeypatch.context() as patch:
                patch.setattr(log, "datetime", clock)
                box.write(refunds=f"Refunds take {text} days.")
                assert box.execute(SOURCE_JOB, SOURCE, instance).success
                if hours == 5:
                    assert box.execute(REGION_JOB, f"{PRIMARY}|{SOURCE}", instance).success
        box.write(refunds="Refunds take eight days.")
        assert box.execute(SOURCE_JOB, SOURCE, instance).success

    (row,) = status(box.deployment, [SOURCE], [PRIMARY])

    assert not row.current
    assert 3 * 3600 <= (row.lag_seconds or 0) < 4 * 3600
