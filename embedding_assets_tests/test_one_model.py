"""One model is normal: the other slot is empty, costs nothing, and is bound or emptied when somebody wants it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from embedding_assets.embedding import task
from embedding_assets.errors import PermanentError
from embedding_assets.operations.migration import promote, retire
from embedding_assets.operations.search import search
from embedding_assets.operations.status import is_current
from embedding_assets.operations.verification import verify
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.pgvector.schema.models import live_slot
from embedding_assets.snapshots import log
from embedding_assets.snapshots.slots import SLOTS, Slot, asset_of, other
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets_tests.support.harness import MODELS, PRIMARY, SOURCE, Sandbox

BOTH = MODELS
V1: Mapping[str, Mapping[str, Any]] = {"v1": BOTH["v1"]}
V2: Mapping[str, Mapping[str, Any]] = {"v2": BOTH["v2"]}


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    """One region, two documents, and one model."""
    sandbox.write(refunds="Refunds take five days.", lists="Lists are mutable sequences.")
    return replace(sandbox, dsns={PRIMARY: sandbox.dsns[PRIMARY]}, models=V1)


def bound(box: Sandbox, models: Mapping[str, Mapping[str, Any]], live: Slot = "v1") -> Sandbox:
    """The same sandbox with other models in its settings."""
    return replace(box, models=models, more={"live_model": live})


def materialize(box: Sandbox) -> list[Outcome]:
    outcomes = box.materialize()
    assert [outcome.errors for outcome in outcomes if not outcome.succeeded] == []
    return outcomes


def errors(box: Sandbox) -> str:
    return "\n".join(error for outcome in box.materialize() for error in outcome.errors)


def promoted(box: Sandbox, to: Slot) -> None:
    assert not any(step.failed for step in promote(box.deployment, to, [PRIMARY], force=True))


def head(box: Sandbox, slot: Slot) -> Snapshot:
    snapshot = log.head(box.deployment.primary, asset_of(slot), SOURCE)
    assert snapshot is not None
    return snapshot


def stored(box: Sandbox) -> dict[str, tuple[int, list[str]]]:
    """By slot, how many vectors the region's table has, and which valid indexes are on them."""
    with psycopg.connect(box.dsns[PRIMARY]) as conn:
        (generation,) = (
            conn.execute("SELECT id FROM embedding_assets.generations WHERE state = 'published'").fetchone() or ()
        )
        counts = conn.execute("SELECT count(embedding_v1), count(embedding_v2) FROM embedding_assets.chunks").fetchone()
        assert counts is not None
        indexes = conn.execute(
            "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE indisvalid AND indrelid = format('embedding_assets.generation_%%s', %s::int)::regclass",
            [generation],
        ).fetchall()
    return {
        slot: (count, [name for (name,) in indexes if name.endswith(f"_{slot}")])
        for slot, count in zip(SLOTS, counts, strict=True)
    }


def nearest(box: Sandbox, question: str = "When do I get my money back? refunds") -> str:
    return str(search(box.deployment, PRIMARY, question, k=1)[0]["document_id"])


def serves(box: Sandbox) -> bool:
    return is_current(box.deployment, PRIMARY, SOURCE) and not verify(box.deployment, [SOURCE], [PRIMARY])


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The slots that texts were sent to, a name each time."""
    slots: list[str] = []
    engine = vars(task)["embed"]

    def noted(binding: Any, *args: Any, **options: Any) -> Any:
        slots.append(binding.slot)
        return engine(binding, *args, **options)

    monkeypatch.setattr(task, "embed", noted)
    return slots


# One model


@pytest.mark.parametrize("slot", SLOTS)
def test_one_model_is_a_complete_configuration(box: Sandbox, slot: Slot) -> None:
    one = replace(box, models={slot: BOTH[slot]})

    outcomes = materialize(one)

    assert serves(one)
    assert nearest(one) == "refunds.md"
    assert one.deployment.settings.live_model == slot
    rows, (index,) = stored(one)[slot]
    assert rows == 2
    assert index.endswith(slot)
    assert stored(one)[other(slot)] == (0, [])
    assert head(one, other(slot)).parts == ()
    said = {
        check.name: check.description
        for outcome in outcomes
        for check in outcome.checks
        if check.asset == asset_of(other(slot))
    }
    assert set(said.values()) == {f"slot {other(slot)} is empty"}


def test_an_edit_is_laid_on_what_was_there_by_one_model_as_by_two(box: Sandbox, embedded: list[str]) -> None:
    materialize(box)
    box.write(refunds="Refunds take six days.")

    materialize(box)

    assert serves(box)
    assert embedded == ["v1", "v1"]
    assert [row[3] for row in box.rows(PRIMARY)] == ["Lists are mutable sequences.", "Refunds take six days."]


# Another one


def test_a_model_that_is_bound_later_is_filled_beside_the_live_one(box: Sandbox, embedded: list[str]) -> None:
    materialize(box)
    before = head(box, "v1")
    both = bound(box, BOTH)

    materialize(both)

    assert serves(both)
    assert embedded == ["v1", "v2"]
    assert head(both, "v1").parts == before.parts
    assert {slot: rows for slot, (rows, _) in stored(both).items()} == {"v1": 2, "v2": 2}
    promoted(both, "v2")
    assert serves(both)
    assert nearest(both) == "refunds.md"


def test_a_slot_that_is_emptied_leaves_nothing_behind(box: Sandbox, embedded: list[str]) -> None:
    materialize(bound(box, BOTH))

    materialize(box)

    assert serves(box)
    assert stored(box)["v2"] == (0, [])
    assert head(box, "v2").parts == ()
    assert embedded == ["v1", "v2"]


def test_what_was_emptied_and_is_bound_again_is_not_bought_again(box: Sandbox, embedded: list[str]) -> None:
    both = bound(box, BOTH)
    materialize(both)
    materialize(box)

    materialize(both)

    assert serves(both)
    assert embedded == ["v1", "v2"]


def test_a_model_that_was_retired_leaves_nothing_behind(box: Sandbox) -> None:
    materialize(bound(box, BOTH))
    promoted(bound(box, BOTH), "v2")

    moved = bound(box, V2, live="v2")
    assert [step.did for step in retire(moved.deployment, "v1", [PRIMARY], force=True)] == ["v1 is retired"]
    materialize(moved)

    assert serves(moved)
    assert stored(moved)["v1"] == (0, [])


@pytest.mark.parametrize("filled", [False, True])
def test_the_live_model_is_not_emptied_and_the_cure_works(box: Sandbox, filled: bool) -> None:
    materialize(bound(box, BOTH) if filled else box)

    refused = errors(bound(box, V2, live="v2"))

    assert "slot v1 is live with model wordllama-" in refused
    assert "cannot be emptied: searches would find nothing until every source is loaded again" in refused
    assert (
        "Cure: leave models.v1 as it was. Bind the new model to v2, run embedding-assets materialize, then" in refused
    )
    assert len(box.rows(PRIMARY)) == 2  # readers have what they had
    materialize(bound(box, BOTH))
    promoted(bound(box, BOTH), "v2")
    moved = bound(box, V2, live="v2")
    within = errors(moved)  # the validation window
    assert "it is what embedding-assets migration rollback goes back to. Cure: leave models.v1 as it was" in within
    assert not any(step.failed for step in retire(moved.deployment, "v1", [PRIMARY], force=True))
    materialize(moved)
    assert serves(moved)


def test_a_line_of_the_settings_switches_nothing_and_says_what_does(
    box: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    materialize(bound(box, BOTH))

    materialize(bound(box, BOTH, live="v2"))

    with bound(box, BOTH, live="v2").deployment.connect(PRIMARY) as conn:
        assert live_slot(conn) == "v1"
    bound(box, BOTH, live="v2").deployment.prepare(PRIMARY)
    assert "live_model is v2 in the settings, and v1 is live. Nothing switches by that" in caplog.text
    assert "Cure: embedding-assets migration promote --to v2, or write live_model: v1" in caplog.text
    assert is_current(bound(box, BOTH, live="v2").deployment, PRIMARY, SOURCE)


def test_a_search_by_settings_without_the_live_model_says_what_is_missing(box: Sandbox) -> None:
    materialize(box)

    with pytest.raises(PermanentError, match=r"slot v1 is empty in these settings\. Cure: bind the model"):
        nearest(bound(box, V2, live="v2"))
