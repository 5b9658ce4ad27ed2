"""Each finding of `verify` names a cure, and the cure, done as it is written, leaves nothing to find."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from click.testing import CliRunner, Result

from embedding_assets.cli import cli
from embedding_assets.operations import verification
from embedding_assets.operations.findings import Finding, Kind, Where
from embedding_assets.operations.status import is_current, status
from embedding_assets.operations.verification import repair, verify, verify_and_repair
from embedding_assets.orchestration.automation.jobs import REGION_JOB, SOURCE_JOB
from embedding_assets.snapshots import log, replication
from embedding_assets.snapshots.names import REPLICA
from embedding_assets.snapshots.replication import Harm
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets_tests.support.harness import PRIMARY, REGIONS, SOURCE, Sandbox

EU = "eu-west-1"


@pytest.fixture
def box(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Served in both regions, in its second edition; commands of this process work on it."""
    for text in ("Refunds take five days.", "Refunds take six days."):
        sandbox.write(refunds=text, returns="Returns are free.")
        assert all(outcome.succeeded for outcome in sandbox.materialize())
    for name, value in sandbox.environment().items():
        monkeypatch.setenv(name, value)
    return sandbox


def command(line: str) -> Result:
    program, *arguments = shlex.split(line)
    assert program == "embedding-assets"
    return CliRunner().invoke(cli, arguments)


def found(box: Sandbox) -> list[Finding]:
    return verify(box.deployment, [SOURCE], REGIONS)


def store(box: Sandbox, region: str) -> Path:
    return box.root / "stores" / region


def part(box: Sandbox, region: str = EU) -> Path:
    replica = log.head(box.deployment.store(region), REPLICA, SOURCE)
    assert replica is not None
    return store(box, region) / replica.layers[0].path(SOURCE)


def lose_a_part(box: Sandbox) -> None:
    part(box).unlink()


def flip_a_bit(box: Sandbox) -> None:
    data = part(box).read_bytes()
    part(box).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def lose_the_newest_entry(box: Sandbox) -> None:
    (store(box, EU) / log.entry_path(REPLICA, SOURCE, 2)).unlink()


def lose_all_parts(box: Sandbox) -> None:
    shutil.rmtree(store(box, EU) / "parts")


def lose_the_store(box: Sandbox) -> None:
    shutil.rmtree(store(box, EU))


def forge_an_entry(box: Sandbox) -> None:
    path = store(box, EU) / log.entry_path(REPLICA, SOURCE, 2)
    path.write_text(json.dumps({**json.loads(path.read_text()), "root": "0" * 64}))


def lose_the_table(box: Sandbox) -> None:
    execute(box, "UPDATE embedding_assets.generations SET state = 'retired'")


def serve_an_older_snapshot(box: Sandbox) -> None:
    execute(box, "UPDATE embedding_assets.generations SET target_root = 'an older one'")


def forge_rows(box: Sandbox) -> None:
    execute(box, "UPDATE embedding_assets.chunks SET content = 'forged'")


def drop_an_index(box: Sandbox) -> None:
    execute(box, "DROP INDEX embedding_assets.generation_1_v1")


def change_the_documents(*assets: str) -> Callable[[Sandbox], None]:
    """The source's run goes no further than these assets."""

    def change(box: Sandbox) -> None:
        box.write(refunds="Refunds take seven days.")
        with dg.DagsterInstance.ephemeral() as instance:
            assert box.execute(SOURCE_JOB, SOURCE, instance, assets=assets).success

    change.__name__ = "only_" + "_".join(assets)
    return change


def replicate_and_no_more(box: Sandbox) -> None:
    change_the_documents()(box)
    with dg.DagsterInstance.ephemeral() as instance:
        assert box.execute(REGION_JOB, f"{EU}|{SOURCE}", instance, assets=[REPLICA]).success


def execute(box: Sandbox, statement: str) -> None:
    with psycopg.connect(box.dsns[EU], autocommit=True) as conn:
        conn.execute(statement.encode())


HARMS: dict[Callable[[Sandbox], None], set[tuple[Kind, str, str]]] = {
    lose_a_part: {(Kind.PART_MISSING, EU, REPLICA)},
    flip_a_bit: {(Kind.PART_DAMAGED, EU, REPLICA)},
    lose_the_newest_entry: {(Kind.BEHIND, EU, REPLICA), (Kind.BEHIND, EU, "pgvector_table")},
    lose_all_parts: {(Kind.PART_MISSING, EU, REPLICA)},
    lose_the_store: {(Kind.NEVER_MADE, EU, REPLICA)},
    forge_an_entry: {(Kind.ENTRY_DAMAGED, EU, REPLICA)},
    lose_the_table: {(Kind.NEVER_MADE, EU, "pgvector_table")},
    serve_an_older_snapshot: {(Kind.BEHIND, EU, "pgvector_table")},
    forge_rows: {(Kind.ROWS_DIFFER, EU, "pgvector_table")},
    drop_an_index: {(Kind.INDEX_INVALID, EU, "hnsw_index")},
    change_the_documents("raw_docs"): {(Kind.BEHIND, PRIMARY, "chunks")},
    change_the_documents("raw_docs", "chunks"): {
        *((Kind.BEHIND, PRIMARY, asset) for asset in ("embeddings_v1", "embeddings_v2")),
        *((Kind.BEHIND, region, REPLICA) for region in REGIONS),
    },
    change_the_documents("raw_docs", "chunks", "embeddings_v1"): {
        (Kind.BEHIND, PRIMARY, "embeddings_v2"),
        *((Kind.BEHIND, region, REPLICA) for region in REGIONS),
    },
    change_the_documents(): {(Kind.BEHIND, region, REPLICA) for region in REGIONS},
    replicate_and_no_more: {(Kind.BEHIND, PRIMARY, REPLICA), (Kind.BEHIND, EU, "pgvector_table")},
}


QUICK = {flip_a_bit, lose_the_store, forge_rows}


@pytest.mark.parametrize(
    "harm",
    [pytest.param(harm, id=harm.__name__, marks=() if harm in QUICK else pytest.mark.slow) for harm in HARMS],
)
def test_every_finding_names_where_and_a_cure_that_leaves_nothing_to_find(
    box: Sandbox, harm: Callable[[Sandbox], None]
) -> None:
    assert found(box) == []
    rows = box.rows(EU)
    harm(box)

    findings = found(box)
    assert {(one.kind, one.where.region, one.where.asset) for one in findings} == HARMS[harm]
    ran = command("embedding-assets verify --json")
    assert (ran.exit_code, json.loads(ran.stdout)) == (1, {"differences": [one.as_json() for one in findings]})
    assert not all(row.current for row in status(box.deployment, [SOURCE], REGIONS)) or harm in (flip_a_bit, forge_rows)
    for cure in sorted({one.cure for one in findings}):
        assert command(cure).exit_code == 0, cure

    assert found(box) == []
    assert all(is_current(box.deployment, region, SOURCE) for region in REGIONS)
    assert [row[1] for row in box.rows(EU)] == [row[1] for row in rows]


@pytest.mark.parametrize(
    ("harm", "cure"),
    [(lose_a_part, "materialize"), (lose_all_parts, "materialize"), (lose_the_store, "verify --repair")],
    ids=lambda given: given if isinstance(given, str) else given.__name__,
)
@pytest.mark.slow
def test_a_region_that_lost_of_its_store_is_not_current_and_either_command_brings_it_back(
    box: Sandbox, harm: Callable[[Sandbox], None], cure: str
) -> None:
    harm(box)

    (row,) = status(box.deployment, [SOURCE], [EU])
    assert not row.current
    assert command("embedding-assets status").exit_code == 1
    assert command(f"embedding-assets {cure}").exit_code == 0

    assert found(box) == []
    (row,) = status(box.deployment, [SOURCE], [EU])
    assert (row.current, row.lag_seconds) == (True, 0)


def test_what_is_mended_is_what_the_findings_name_and_nothing_else(box: Sandbox) -> None:
    lose_all_parts(box)
    first, *others = found(box)

    (done,) = repair(box.deployment, [first])

    assert (done.findings, done.failed) == ((first,), False)
    assert found(box) == others


@pytest.mark.slow
def test_a_repair_takes_the_finding_at_its_word_and_examines_nothing(box: Sandbox) -> None:
    """So what a person or another program found is mended alike."""
    where = Where(SOURCE, EU, "pgvector_table", shard=0)

    (done,) = repair(box.deployment, [Finding(Kind.ROWS_DIFFER, where, "of another opinion", "verify --repair")])

    assert done.did == f"1 shards replaced by the replica's rows: {len(box.rows(EU))} written, 0 deleted"
    assert found(box) == []


@pytest.mark.slow
def test_only_where_something_was_mended_is_looked_at_again(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_a_bit(box)
    read: list[str] = []

    def harmed(store: Store, snapshot: Snapshot) -> list[Harm]:
        read.append(store.url.rpartition("/")[2])
        return replication.harmed(store, snapshot)

    monkeypatch.setattr(verification, "harmed", harmed)
    repairs, left = verify_and_repair(box.deployment, [SOURCE], REGIONS)

    assert ([done.place for done in repairs], left) == ([(EU, SOURCE)], [])
    assert (read.count(PRIMARY), read.count(EU)) == (5, 2)


@pytest.mark.slow
def test_what_cannot_be_mended_is_said_and_left(box: Sandbox) -> None:
    """The replica's own part is lost in every region: its stage makes it again."""
    part(box, PRIMARY).unlink()
    part(box, EU).unlink()

    repairs, left = verify_and_repair(box.deployment, [SOURCE], REGIONS)

    assert repairs == []
    assert {finding.kind for finding in left} == {Kind.PART_MISSING}
