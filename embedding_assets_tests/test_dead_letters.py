"""Dead letters through the whole chain: found, listed, tried again, cleared at their source, told to people."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import dagster as dg
import psycopg
import pytest

from embedding_assets.errors import PermanentError
from embedding_assets.operations import dead_letters
from embedding_assets.orchestration.automation.jobs import SOURCE_JOB
from embedding_assets.orchestration.automation.reconciliation import RECONCILIATION_JOB
from embedding_assets.snapshots import log
from embedding_assets.sources.places import folder
from embedding_assets_tests.support.harness import PRIMARY, QUIET, SOURCE, Sandbox
from embedding_assets_tests.support.standin import Standin

FIXED = {"source", "document_id", "chunk_id", "model_version", "stage", "error_class", "message", "attempts", "state"}
POISON = {"fault": "poison", "match": "forbidden"}


@pytest.fixture
def box(sandbox: Sandbox, standin: Standin) -> Sandbox:
    """Three documents, one of which the provider of v2 is going to refuse."""
    sandbox.write(good="# Good\n\nA page.", fine="# Fine\n\nAnother page.", bad="# Bad\n\nWhat is forbidden.")
    return replace(sandbox, models={**sandbox.models, "v2": standin.model()})


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def source_run(box: Sandbox, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return box.execute(SOURCE_JOB, SOURCE, instance)


def command(box: Sandbox, *arguments: str) -> Any:
    """What `embedding-assets dead-letters …` prints with --json."""
    done = subprocess.run(
        [sys.executable, "-c", "from embedding_assets.cli import main; main()", "dead-letters", *arguments, "--json"],
        env=box.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def letters(box: Sandbox) -> list[tuple[str | None, str, str | None, str]]:
    """(document, stage, model version, state) of every letter."""
    found = dead_letters.listed(box.deployment, None, [*dead_letters.OPEN, "resolved"])
    return sorted(((f.document_id, f.stage, f.model_version, f.state) for f in found), key=str)


def only(box: Sandbox) -> int:
    """The number of the one letter there is."""
    (letter,) = dead_letters.listed(box.deployment, None, [*dead_letters.OPEN, "resolved"])
    return letter.id


def verdict(result: dg.ExecuteInProcessResult, asset: str) -> tuple[bool, str]:
    """Whether `nothing_rejected` of an asset passed, and how grave it was."""
    (found,) = (
        e
        for e in result.get_asset_check_evaluations()
        if (e.asset_key.path[-1], e.check_name) == (asset, "nothing_rejected")
    )
    return found.passed, found.severity.value


def test_a_refused_text_is_a_letter_and_the_rest_goes_on(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance
) -> None:
    standin.faults(POISON)

    assert source_run(box, instance).success

    (listed,) = command(box, "list")
    assert {name: value for name, value in listed.items() if name in FIXED} == {
        "source": SOURCE,
        "document_id": "bad.md",
        "chunk_id": listed["payload"].partition("#")[2],
        "message": listed["message"],
        "model_version": "v2",
        "stage": "embeddings",
        "error_class": "refused",
        "attempts": 1,
        "state": "pending",
    }
    assert "mend the text at its source" in listed["cure"]
    assert "mend the text" not in listed["message"]
    assert listed["kind"] == "text"
    assert command(box, "show", str(listed["id"]))["text"] == "# Bad\n\nWhat is forbidden."


def test_a_refused_document_is_a_letter_with_its_place_and_its_cure(box: Sandbox, instance: dg.DagsterInstance) -> None:
    (box.docs / "empty.md").touch()
    source_run(box, instance)
    (listed,) = command(box, "list", "--source", SOURCE)
    assert (listed["stage"], listed["error_class"], listed["payload"]) == ("raw_docs", "empty-text", "empty.md")
    assert listed["model_version"] is listed["chunk_id"] is None
    assert listed["cure"] == "fill it, or remove the document from the source"
    assert (listed["kind"], listed["message"]) == ("document", "the text is empty, or blank")


@pytest.mark.slow
def test_a_document_fixed_at_its_source_clears_its_letters(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance
) -> None:
    standin.faults(POISON)
    (box.docs / "empty.md").touch()
    source_run(box, instance)
    assert [state for *_, state in letters(box)] == ["pending", "pending"]

    box.write(bad="# Bad\n\nWhat is allowed.", empty="# Not empty\n\nAny more.")
    result = source_run(box, instance)

    assert [state for *_, state in letters(box)] == ["resolved", "resolved"]
    assert verdict(result, "raw_docs") == verdict(result, "embeddings_v2") == (True, "WARN")
    assert command(box, "list") == []


@pytest.mark.slow
def test_a_letter_is_not_sent_again_until_somebody_replays_it(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance
) -> None:
    standin.faults(POISON)
    source_run(box, instance)
    standin.reset()  # the provider has changed its mind
    source_run(box, instance)
    assert standin.log() == []

    (asked,) = command(box, "replay", str(only(box)))
    assert asked["state"] == "replayed"
    source_run(box, instance)

    assert [entry["items"] for entry in standin.log()] == [1]
    assert [state for *_, state in letters(box)] == ["resolved"]
    head = log.head(box.deployment.primary, "embeddings_v2", SOURCE)
    assert head is not None
    assert head.rejected == ()


@pytest.mark.slow
def test_a_replay_in_vain_counts_its_attempts(box: Sandbox, standin: Standin, instance: dg.DagsterInstance) -> None:
    standin.faults(POISON)
    source_run(box, instance)
    command(box, "replay", str(only(box)))
    source_run(box, instance)
    (listed,) = command(box, "list")
    assert (listed["state"], listed["attempts"], listed["replays"]) == ("pending", 2, 1)


def test_a_replayed_document_is_read_again_though_its_file_looks_the_same(
    box: Sandbox, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    (box.docs / "empty.md").touch()
    monkeypatch.setattr(folder, "RACY_NS", 0)  # a file as young as the look at it would be read again in any case
    source_run(box, instance)
    again = source_run(box, instance).asset_materializations_for_node("raw_docs")[0].metadata["items_read"].value
    command(box, "replay", str(only(box)))
    asked = source_run(box, instance).asset_materializations_for_node("raw_docs")[0].metadata["items_read"].value
    assert (again, asked) == (0, 1)


def test_letters_of_a_run_that_fails_are_on_record_and_not_paid_for_again(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance
) -> None:
    box = replace(box, models={**box.models, "v2": standin.model(max_items=1, max_in_flight=1)})
    # The refused text comes first in its order; what comes after it meets a revoked key.
    standin.faults(POISON, {"fault": "revoked", "match": "page", "skip": 1})
    assert not source_run(box, instance).success
    assert letters(box) == [("bad.md", "embeddings", "v2", "pending")]

    standin.reset()
    standin.faults(POISON)
    assert source_run(box, instance).success

    assert all(entry["status"] == 200 for entry in standin.log())
    assert letters(box) == [("bad.md", "embeddings", "v2", "pending")]


@pytest.mark.slow
def test_the_check_warns_of_few_fails_for_many_and_never_blocks(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance
) -> None:
    standin.faults(POISON)
    many = source_run(box, instance)
    assert many.success
    assert verdict(many, "embeddings_v2") == (False, "ERROR")  # one of three

    box.write(**{f"more_{i}": f"# Page {i}\n\nNumber {i}." for i in range(30)})
    few = source_run(box, instance)
    assert verdict(few, "embeddings_v2") == (False, "WARN")
    assert verdict(few, "raw_docs")[0]


@pytest.mark.slow
def test_an_accepted_letter_counts_no_more_and_is_not_sent(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance
) -> None:
    standin.faults(POISON)
    source_run(box, instance)
    command(box, "resolve", str(only(box)))
    sent = len(standin.log())

    result = source_run(box, instance)

    assert verdict(result, "embeddings_v2")[0]
    assert len(standin.log()) == sent
    assert [state for *_, state in letters(box)] == ["resolved"]


def test_a_primary_database_that_can_not_be_reached_stops_no_source(box: Sandbox, instance: dg.DagsterInstance) -> None:
    (box.docs / "empty.md").touch()
    there = box.dsns[PRIMARY]
    box.dsns[PRIMARY] = there.replace("/test_", "/nobody_made_")
    assert source_run(box, instance).success

    box.dsns[PRIMARY] = there
    assert source_run(box, instance).success
    assert [state for *_, state in letters(box)] == ["pending"]


def test_a_letter_that_is_not_there_is_refused_with_the_cure(box: Sandbox) -> None:
    with pytest.raises(PermanentError, match=r"there is no dead letter 7\. Cure: embedding-assets"):
        dead_letters.mark(box.deployment, [7], "replayed")


# The reconciliation


def reconciliation(box: Sandbox, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    from embedding_assets.orchestration.build import build_defs

    job = build_defs(box.deployment).resolve_job_def(RECONCILIATION_JOB)
    return job.execute_in_process(instance=instance, run_config=QUIET, raise_on_error=False)


@pytest.mark.slow
def test_what_may_heal_is_tried_again_and_heals(box: Sandbox, standin: Standin, instance: dg.DagsterInstance) -> None:
    standin.faults({"fault": "nan", "match": "forbidden"})
    source_run(box, instance)
    assert [letter.error_class for letter in dead_letters.listed(box.deployment, None, ["pending"])] == ["bad-vector"]
    standin.reset()

    assert reconciliation(box, instance).success
    assert [state for *_, state in letters(box)] == ["replayed"]
    source_run(box, instance)

    assert [state for *_, state in letters(box)] == ["resolved"]


@pytest.mark.slow
def test_what_goes_on_failing_and_what_can_not_heal_is_told_once(
    box: Sandbox, standin: Standin, instance: dg.DagsterInstance
) -> None:
    standin.faults({"fault": "nan", "match": "forbidden"})
    (box.docs / "empty.md").touch()
    source_run(box, instance)
    told: list[str] = []

    def tell(text: str) -> bool:
        told.append(text)
        return True

    for _ in range(dead_letters.MOST_REPLAYS):
        dead_letters.reconcile(box.deployment, tell)
        source_run(box, instance)
    assert letters(box) == [("bad.md", "embeddings", "v2", "pending"), ("empty.md", "raw_docs", None, "escalated")]
    assert dead_letters.reconcile(box.deployment, tell).escalated == 1
    source_run(box, instance)
    dead_letters.reconcile(box.deployment, tell)

    assert told == [
        f"1 dead letter needs a person: 1 × {error} of source {SOURCE}. See: embedding-assets dead-letters list"
        for error in ("empty-text in raw_docs", "bad-vector in embeddings")
    ]
    assert [state for *_, state in letters(box)] == ["escalated", "escalated"]


def test_people_that_could_not_be_told_are_told_the_next_time(box: Sandbox, instance: dg.DagsterInstance) -> None:
    (box.docs / "empty.md").touch()
    source_run(box, instance)

    assert dead_letters.reconcile(box.deployment, lambda text: False).escalated == 0
    assert [state for *_, state in letters(box)] == ["pending"]
    assert dead_letters.reconcile(box.deployment, lambda text: True).escalated == 1


def test_no_connection_is_held_while_people_are_told_and_what_they_settle_meanwhile_stays_settled(
    box: Sandbox, instance: dg.DagsterInstance
) -> None:
    (box.docs / "empty.md").touch()
    source_run(box, instance)

    def settle(text: str) -> bool:
        with psycopg.connect(box.dsns[PRIMARY], autocommit=True) as conn:
            others = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert conn.execute(f"{others} AND backend_type = 'client backend'").fetchone() == (0,)
            conn.execute("UPDATE embedding_assets.dead_letters SET state = 'resolved'")
        return True

    assert dead_letters.reconcile(box.deployment, settle).escalated == 0
    assert [state for *_, state in letters(box)] == ["resolved"]


def test_letters_of_a_source_that_left_the_settings_are_withdrawn(box: Sandbox, instance: dg.DagsterInstance) -> None:
    (box.docs / "empty.md").touch()
    source_run(box, instance)
    other = {"other": {"kind": "files", "path": str(box.docs)}}
    settings = box.deployment.settings.model_validate({**box.settings, "sources": other})

    did = dead_letters.reconcile(replace(box.deployment, settings=settings), lambda text: True)

    assert (did.withdrawn, did.escalated) == (1, 0)
    assert [state for *_, state in letters(box)] == ["resolved"]
