"""The table of errors, row by row."""

import pytest

from embedding_assets.embedding.errors import Kind, by_status

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
        (403, "{}", Kind.FATAL),
        (401, "{}", Kind.FATAL),
        (402, "{}", Kind.FATAL),
        (404, "{}", Kind.FATAL),
        (405, "{}", Kind.FATAL),
        (418, "{}", Kind.FATAL),
        (301, "", Kind.FATAL),
        (204, "", Kind.FATAL),
    ],
)
def test_what_a_status_means(status: int, body: str, kind: Kind) -> None:
    assert by_status(status, body).kind is kind


def test_every_status_has_a_row_and_every_fatal_row_a_cure() -> None:
    for status in range(100, 600):
        row = by_status(status, "")
        assert row.error_class
        assert row.cure or row.kind is not Kind.FATAL


@pytest.mark.parametrize("words", ["model not found", "dimensions", "insufficient_quota", "encoding_format"])
def test_a_refusal_that_echoes_the_text_is_not_taken_for_a_wrong_setting(words: str) -> None:
    assert by_status(400, f"cannot embed: {words}").kind is Kind.POISON
