"""The table of errors, row by row."""

import pytest

from embedding_assets.embedding.engine import errors
from embedding_assets.embedding.engine.errors import Kind, by_status
from embedding_assets.snapshots.rejections import ERROR_CLASSES, may_heal

PAGE = "<html><h1>Forbidden</h1></html>"
NO_MONEY = '{"error": {"code": "insufficient_quota"}}'


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, "{}", Kind.THROTTLED),
        (429, NO_MONEY, Kind.FATAL),
        (408, "", Kind.TRANSIENT),
        (409, "", Kind.TRANSIENT),
        (425, "", Kind.TRANSIENT),
        (500, "", Kind.TRANSIENT),
        (504, PAGE, Kind.TRANSIENT),
        (501, "", Kind.DOWN),
        (502, PAGE, Kind.DOWN),
        (503, "", Kind.DOWN),
        (520, "", Kind.DOWN),
        (529, "overloaded", Kind.DOWN),
        (400, "{}", Kind.POISON),
        (413, "", Kind.POISON),
        (422, "{}", Kind.POISON),
        (403, PAGE, Kind.POISON),
        (403, "{}", Kind.VERDICT),
        (401, "{}", Kind.VERDICT),
        (402, "{}", Kind.FATAL),
        (404, "{}", Kind.VERDICT),
        (405, "{}", Kind.VERDICT),
        (418, "{}", Kind.VERDICT),
        (301, "", Kind.VERDICT),
        (204, "", Kind.VERDICT),
    ],
)
def test_what_a_status_means(status: int, body: str, kind: Kind) -> None:
    assert by_status(status, body).kind is kind


def test_the_table_of_the_docstring_has_every_kind() -> None:
    described = {line.split("|")[1].strip() for line in str(errors.__doc__).splitlines() if line.startswith("| ")}
    assert described - {"kind", ""} == set(Kind)


def test_every_status_has_a_row_and_every_fatal_row_a_cure() -> None:
    for status in range(100, 600):
        row = by_status(status, "")
        assert row.error_class
        assert row.cure or row.kind not in (Kind.VERDICT, Kind.FATAL)


@pytest.mark.parametrize("words", ["model not found", "dimensions", "insufficient_quota", "encoding_format"])
def test_a_refusal_that_echoes_the_text_is_not_taken_for_a_wrong_setting(words: str) -> None:
    assert by_status(400, f"cannot embed: {words}").kind is Kind.POISON


@pytest.mark.parametrize("row", [errors.DIMENSION, errors.OTHER_MODEL, errors.CREDENTIALS, errors.UNEXPECTED])
def test_a_text_that_died_of_a_verdict_is_tried_again_later_and_its_cure_is_not_the_settings(row: errors.Row) -> None:
    assert may_heal(row.error_class)
    assert ERROR_CLASSES[row.error_class].cure != row.cure


def test_every_class_that_a_text_can_die_of_is_registered_with_its_cure_and_no_other_is_of_a_text() -> None:
    rows = {row for row in vars(errors).values() if isinstance(row, errors.Row)}
    rows |= {by_status(status, "") for status in range(100, 600)}
    deadly = {row.error_class for row in rows if row.kind in (Kind.POISON, Kind.VERDICT, Kind.TRANSIENT)}
    assert deadly == {name for name, known in ERROR_CLASSES.items() if known.kind == "text"}


def test_what_heals_is_what_the_provider_was_at_fault_for() -> None:
    assert all(
        by_status(status, "").kind is not Kind.POISON or not may_heal(by_status(status, "").error_class)
        for status in range(100, 600)
    )
    assert not may_heal(errors.TOO_LONG.error_class)
    assert may_heal(errors.BAD_VECTOR.error_class)
    assert not may_heal("a-newer-version-s")
