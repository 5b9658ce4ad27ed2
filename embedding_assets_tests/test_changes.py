"""Cost follows the change: what an edit, an addition and a deletion do, and that nothing else moves."""

import shutil
from collections.abc import Sequence
from typing import Any

import pytest

from embedding_assets.orchestration.driver import Outcome
from embedding_assets_tests.support.harness import REGIONS, Sandbox

TEXTS = {
    "lists": "# Lists\n\nLists are mutable sequences of items.",
    "tuples": "# Tuples\n\nTuples are immutable sequences.",
    "guide__dicts": "# Dictionaries\n\nMappings from keys to values.",
    "guide__sets": "# Sets\n\nUnordered collections of unique elements.",
    "guide__strings": "# Strings\n\nText is a sequence of code points.",
    "guide__bytes": "# Bytes\n\nImmutable sequences of small integers.",
}


def all_succeeded(outcomes: Sequence[Outcome]) -> bool:
    return all(outcome.succeeded for outcome in outcomes) and all(c.passed for o in outcomes for c in o.checks)


def told(outcomes: Sequence[Outcome], asset: str, *names: str) -> list[tuple[Any, ...]]:
    """What an asset's metadata has under these names, a tuple for each run that materialized it."""
    return [tuple(o.metadata[asset][name] for name in names) for o in outcomes if asset in o.metadata]


@pytest.fixture
def filled(sandbox: Sandbox) -> Sandbox:
    sandbox.write(**TEXTS)
    assert all_succeeded(sandbox.materialize())
    return sandbox


def test_every_document_is_searchable_in_every_region(filled: Sandbox) -> None:
    for region in REGIONS:
        documents = {row[1] for row in filled.rows(region)}
        assert documents == {name.replace("__", "/") + ".md" for name in TEXTS}
    assert filled.rows("eu-west-1") == filled.rows("us-east-1")


def test_nothing_changed_costs_nothing(filled: Sandbox) -> None:
    before, rows = filled.objects(), filled.rows("eu-west-1")

    outcomes = filled.materialize()

    assert [outcome.partition for outcome in outcomes] == ["handbook"]  # the regions are current: no run at all
    assert told(outcomes, "embeddings_v1", "new") == told(outcomes, "embeddings_v2", "new") == [(0,)]
    assert filled.objects() == before
    assert filled.rows("eu-west-1") == rows


def test_one_edit_one_addition_one_deletion_change_exactly_those(filled: Sandbox) -> None:
    before = {row[1]: row for row in filled.rows("eu-west-1")}
    filled.write(lists="# Lists\n\nLists can be sorted in place.", numbers="# Numbers\n\nIntegers have no bounds.")
    (filled.docs / "tuples.md").unlink()

    outcomes = filled.materialize()

    assert all_succeeded(outcomes)
    names = ("new", "changed", "reused", "removed")
    assert told(outcomes, "raw_docs", *names) == [(1, 1, 4, 1)]
    assert told(outcomes, "chunks", *names) == [(1, 1, 4, 1)]
    for slot in ("embeddings_v1", "embeddings_v2"):
        assert told(outcomes, slot, "new", "reused") == [(2, 4)]
    rows = ("rows_loaded", "rows_inserted", "rows_updated", "rows_deleted")
    assert told(outcomes, "pgvector_table", *rows) == [(2, 1, 1, 1)] * len(REGIONS)
    assert told(outcomes, "pgvector_table", "way") == [("delta",)] * len(REGIONS)
    for region in REGIONS:
        after = {row[1]: row for row in filled.rows(region)}
        assert after.keys() == before.keys() - {"tuples.md"} | {"numbers.md"}
        assert {name for name in after if after[name] != before.get(name)} == {"lists.md", "numbers.md"}


@pytest.mark.slow
def test_a_renamed_document_is_not_embedded_again(filled: Sandbox) -> None:
    (filled.docs / "lists.md").rename(filled.docs / "sequences.md")

    outcomes = filled.materialize()

    assert all_succeeded(outcomes)
    assert told(outcomes, "embeddings_v1", "new") == told(outcomes, "embeddings_v2", "new") == [(0,)]
    assert "sequences.md" in {row[1] for row in filled.rows("eu-west-1")}


@pytest.mark.slow
def test_the_result_depends_on_the_documents_alone_not_on_how_they_came(filled: Sandbox, sandbox: Sandbox) -> None:
    first = filled.roots()
    filled.write(lists="something else for a while")
    filled.materialize()
    assert filled.roots() != first

    filled.write(**TEXTS)
    filled.materialize()

    assert filled.roots() == first


def test_a_touched_document_is_read_and_nothing_is_written(filled: Sandbox) -> None:
    before = filled.objects()
    (filled.docs / "lists.md").touch()

    outcomes = filled.materialize()

    assert told(outcomes, "raw_docs", "parts_written") == [(0,)]
    assert filled.objects() == before


def test_a_lost_home_costs_reading_and_no_embedding(filled: Sandbox) -> None:
    roots = filled.roots()
    shutil.rmtree(filled.root / "home")
    filled.write(new="# New\n\nOne more document.")

    outcomes = filled.materialize()

    assert told(outcomes, "embeddings_v1", "new", "reused") == [(1, len(TEXTS))]
    assert filled.roots() != roots
