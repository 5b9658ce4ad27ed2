"""The table of dead letters: what a run finds is on record, what people decide stays decided."""

import hashlib

import psycopg
import pytest

from embedding_assets.pgvector import dead_letters
from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.dead_letters import DeadLetter
from embedding_assets.snapshots.rejections import RejectedDocument, RejectedText

EVERY: tuple[dead_letters.State, ...] = ("pending", "replayed", "escalated", "resolved")


def identity(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def rejected(name: str, **given: object) -> RejectedText:
    text = RejectedText(
        source="handbook",
        part="parts/chunks/handbook/0.parquet",
        document_id=f"{name}.md",
        chunk_id="00000000-0000-0000-0000-00000000002a",
        text_hash=identity(name),
        error_class="refused",
        reason="not this one",
        cure="mend it",
    )
    return text.model_copy(update=given)


def run(conn: Connection, *items: str, complete: bool = True, source: str = "handbook") -> None:
    """A run of the first model's embeddings that found these dead."""
    texts = [rejected(item) for item in items]
    dead_letters.record(conn, source, "embeddings", "v1", texts, complete=complete)


def on_record(conn: Connection) -> dict[str, DeadLetter]:
    """The letters by the name of their documents."""
    return {str(found.document_id).removesuffix(".md"): found for found in dead_letters.listed(conn, None, EVERY)}


def states(conn: Connection) -> dict[str, str]:
    return {item: found.state for item, found in on_record(conn).items()}


def mark(conn: Connection, item: str, state: dead_letters.State) -> None:
    dead_letters.mark(conn, [on_record(conn)[item].id], state)


def test_what_a_run_finds_is_pending_with_all_that_was_said_of_it(region: Connection) -> None:
    found = rejected("a", reason="quotes ' \" and %s and \u202e stay", attempts=5)

    dead_letters.record(region, "handbook", "embeddings", "v2", [found], complete=True)

    (kept,) = dead_letters.standing(region, "handbook", "embeddings", "v2")
    assert (kept.source, kept.stage, kept.model_version, kept.state) == ("handbook", "embeddings", "v2", "pending")
    assert (kept.kind, kept.item, kept.document_id, str(kept.chunk_id)) == (
        "text",
        identity("a"),
        "a.md",
        found.chunk_id,
    )
    assert (kept.payload, kept.error_class, kept.message, kept.cure) == (
        found.where,
        "refused",
        found.reason,
        "mend it",
    )
    assert kept.first_seen == kept.last_seen
    assert kept.as_rejected_text() == found


def test_a_rejected_document_is_kept_with_its_place_whatever_its_names_hold(region: Connection) -> None:
    found = RejectedDocument(
        source="handbook",
        item="a\0.jsonl",
        position=3,
        document_id="b\0",
        error_class="bad-id",
        reason="\0",
        cure="name it",
    )

    dead_letters.record(region, "handbook", "raw_docs", None, [found], complete=True)

    (kept,) = dead_letters.standing(region, "handbook", "raw_docs", None)
    assert (kept.kind, kept.item, kept.chunk_id) == ("document", found.identity, None)
    assert (kept.payload, kept.document_id, kept.message) == ("a\ufffd.jsonl:3", "b\ufffd", "\ufffd")


def test_what_is_found_again_is_the_same_letter_seen_later(region: Connection) -> None:
    run(region, "a")
    first = on_record(region)["a"]
    run(region, "a")
    again = on_record(region)["a"]
    assert (again.id, again.first_seen, again.attempts) == (first.id, first.first_seen, 1)
    assert again.last_seen > first.last_seen


def test_what_a_complete_run_no_longer_finds_is_resolved_and_comes_back_as_pending(region: Connection) -> None:
    run(region, "a", "b")
    run(region, "b")
    assert states(region) == {"a": "resolved", "b": "pending"}
    assert [found.item for found in dead_letters.standing(region, "handbook", "embeddings", "v1")] == [identity("b")]
    run(region, "a", "b")
    assert states(region) == {"a": "pending", "b": "pending"}


def test_a_run_that_failed_adds_and_clears_nothing(region: Connection) -> None:
    run(region, "a")
    run(region, "b", complete=False)
    assert states(region) == {"a": "pending", "b": "pending"}


def test_stages_models_and_sources_are_kept_apart(region: Connection) -> None:
    run(region, "a")
    for source, stage, model in (
        ("handbook", "embeddings", "v2"),
        ("handbook", "raw_docs", None),
        ("tickets",) * 2 + (None,),
    ):
        dead_letters.record(region, source, stage, model, [rejected("a")], complete=True)
    dead_letters.record(region, "handbook", "raw_docs", None, [], complete=True)
    assert sorted((found.stage, found.state) for found in dead_letters.listed(region, "handbook", EVERY)) == [
        ("embeddings", "pending"),
        ("embeddings", "pending"),
        ("raw_docs", "resolved"),
    ]


def test_one_that_was_tried_again_in_vain_is_pending_with_all_its_attempts(region: Connection) -> None:
    run(region, "a", "b")
    mark(region, "a", "replayed")
    run(region, "a", "b")
    assert {item: (found.state, found.attempts, found.replays) for item, found in on_record(region).items()} == {
        "a": ("pending", 2, 1),
        "b": ("pending", 1, 0),
    }


@pytest.mark.parametrize("decided", ["resolved", "escalated"])
def test_what_people_decided_or_were_told_stays_while_it_stands(
    region: Connection, decided: dead_letters.State
) -> None:
    run(region, "a")
    mark(region, "a", decided)
    run(region, "a")
    assert states(region) == {"a": decided}
    assert on_record(region)["a"].standing


def test_one_that_has_gone_can_not_be_asked_for_again(region: Connection) -> None:
    run(region, "a")
    run(region)
    mark(region, "a", "replayed")
    assert states(region) == {"a": "resolved"}


def test_the_same_place_named_twice_in_a_run_is_one_letter(region: Connection) -> None:
    run(region, "a", "a")
    assert len(on_record(region)) == 1


def test_history_goes_after_its_time_and_what_stands_never(region: Connection) -> None:
    run(region, "gone", "stands")
    run(region, "stands")
    region.execute("UPDATE embedding_assets.dead_letters SET last_seen = now() - interval '91 days'")
    assert dead_letters.forget_resolved(region, 90) == 1
    assert states(region) == {"stands": "pending"}


def test_a_state_that_is_none_is_refused_by_the_table(region: Connection) -> None:
    run(region, "a")
    with pytest.raises(psycopg.errors.CheckViolation):
        region.execute("UPDATE embedding_assets.dead_letters SET state = 'lost'")
