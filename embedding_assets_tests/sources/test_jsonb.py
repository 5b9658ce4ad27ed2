"""Canonical JSON is what PostgreSQL prints: compared with a real server, never with a copy of the rules."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_assets.pgvector import embedded
from embedding_assets.sources.jsonb import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, NotJsonbError, canonical_json


@pytest.fixture(scope="module")
def server(postgres: Path) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as connection:
        yield connection


def printed(server: psycopg.Connection[Any], json_text: str) -> str:
    row = server.execute("select %s::jsonb::text", [json_text]).fetchone()
    assert row is not None
    return str(row[0])


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(characters, max_size=12)
# Many short keys of few letters: ties in length, prefixes, two- to four-byte letters.
keys = st.text(st.sampled_from('aAbz09_ "\\\x01\x7fé\u2028￿😀'), max_size=3) | texts
decimals = st.builds(
    lambda digits, exponent: Decimal(digits).scaleb(exponent), st.integers(-(10**30), 10**30), st.integers(-300, 300)
)
numbers = (
    st.integers()
    | st.integers(-(10 ** (MAX_DIGITS - 1)), 10 ** (MAX_DIGITS - 1))
    | st.floats(allow_nan=False, allow_infinity=False)
    | decimals
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(keys, below, max_size=6),
    max_leaves=12,
)
objects = st.dictionaries(keys, values, max_size=8)


@settings(max_examples=300, deadline=None)
@given(value=objects)
def test_postgres_prints_every_object_letter_for_letter_the_same(
    server: psycopg.Connection[Any], value: dict[str, object]
) -> None:
    canonical = canonical_json(value)
    assert printed(server, canonical) == canonical


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (-0.0, "0.0"),
        (1.0, "1.0"),
        (1e5, "100000.0"),
        (1e16, "10000000000000000"),
        (5e-324, "0." + "0" * 323 + "5"),
        (1.7976931348623157e308, "17976931348623157" + "0" * 292),
        (Decimal("1.50"), "1.50"),
        (Decimal("0e5"), "0"),
        (Decimal("-0e-5"), "0.00000"),
        (Decimal("1.5e1"), "15"),
        (10**MAX_DIGITS - 1, "9" * MAX_DIGITS),
        ('\x1f\x7f\u2028/"\\\b\f\n\r\té', '"\\u001f\x7f\u2028/\\"\\\\\\b\\f\\n\\r\\té"'),
        ([], "[]"),
        ({}, "{}"),
        ([1, [None, True], {"b": 0, "aa": 0, "é": 0, "a": 0}], '[1, [null, true], {"a": 0, "b": 0, "aa": 0, "é": 0}]'),
    ],
)
def test_each_kind_of_value_has_one_spelling(server: psycopg.Connection[Any], value: object, expected: str) -> None:
    canonical = canonical_json({"k": value})
    assert canonical == f'{{"k": {expected}}}'
    assert printed(server, canonical) == canonical


@given(value=objects)
def test_the_order_in_which_keys_were_written_does_not_matter(value: dict[str, object]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def nested(levels: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(levels - 1):
        value = {"k": value}
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        (Decimal("-Infinity"), "not finite"),
        (Decimal("1e640"), "more than 640 digits"),
        (Decimal("1e-641"), "more than 640 digits"),
        (Decimal("1e999999999"), "more than 640 digits"),
        (10**MAX_DIGITS, "more than 640 digits"),
        ("a\0b", "U+0000"),
        ({"a\0": 1}, "U+0000"),
        ("\ud800", "lone surrogate"),
        ({"\udfff": 1}, "lone surrogate"),
        ({1: 1}, "key that is not a string"),
        (b"bytes", "bytes is not a JSON value"),
        (nested(MAX_DEPTH), "nested deeper"),
        ("x" * MAX_BYTES, "larger than"),
        ([Decimal("1e600")] * 200, "larger than"),
    ],
)
def test_what_jsonb_cannot_hold_is_refused_with_the_reason_and_without_the_value(value: object, reason: str) -> None:
    with pytest.raises(NotJsonbError) as refused:
        canonical_json({"k": value})
    assert reason in str(refused.value)


def test_the_deepest_object_allowed_is_one_that_postgres_takes(server: psycopg.Connection[Any]) -> None:
    canonical = canonical_json(nested(MAX_DEPTH))
    assert printed(server, canonical) == canonical
