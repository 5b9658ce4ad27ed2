"""What every format promises, whatever the bytes."""

import gzip
import io
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.snapshots.rejections import ERROR_CLASSES, RejectedDocument
from embedding_assets.sources.documents import MAX_TEXT_BYTES, Document
from embedding_assets.sources.formats import Format
from embedding_assets_tests.support.hostile_items import ITEMS, JSONL, TEXT

FORMATS = [
    *((TEXT, f"a.{suffix}") for suffix in ("txt", "md", "mdx", "rst", "html", "xhtml")),
    (JSONL, "a.jsonl"),
    (JSONL, "a.jsonl.gz"),
]
every_format = pytest.mark.parametrize(("form", "item"), FORMATS, ids=[item for _, item in FORMATS])

_FRAGMENTS = r"""<p> </p> <b> <td> <table> <ol> <li/value=9> <li/hidden> <!-- --> <script> </script> <title> <svg> <h1>
<pre> <q> <br> <template> <?xml encoding="gbk"?> <meta/charset=euc-jp> &#xD800; &amp &bogus; < > aria-controls= hidden
style= --- +++ title: title= ``` ~~~ ::: # ## === *** - * > 1. | {/* */} \ ' " é 😀
{ } [ ] , : {"id": "text": "m": "a" "\ud800" "\u0000" 1 -0.0 1e999 1E-9999 NaN null true {"id":"1","text":"x"}"""
_PIECES = [*_FRAGMENTS.split(), " ", "\n", "\n", "\0", "\u0301", "\ufeff", "\r\n", "\t"]

hostile_bytes = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda pieces, codec: "".join(pieces).encode(codec, "replace"),
        st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=40),
        st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "gbk"]),
    ),
)


def found(form: Format, item: str, data: bytes, size: int | None = None) -> list[Document | RejectedDocument]:
    return list(form.documents("s", item, size, io.BytesIO(data)))


@every_format
@given(data=hostile_bytes, cut=st.integers(0, 60))
def test_any_bytes_are_documents_or_rejections_that_say_why_and_are_the_same_the_next_time(
    form: Format, item: str, data: bytes, cut: int
) -> None:
    if item.endswith(".gz"):
        packed = gzip.compress(data, mtime=0)
        data = packed[:-cut] if cut else packed
    things = found(form, item, data)
    assert things == found(form, item, data)
    for thing in things:
        if isinstance(thing, Document):
            assert thing.document_id
            assert thing.text.strip()
            assert "\0" not in thing.text
            assert "\r" not in thing.text
            assert unicodedata.is_normalized("NFC", thing.text)
            assert len(thing.text.encode()) <= MAX_TEXT_BYTES
            assert isinstance(json.loads(thing.metadata_json), dict)
        else:
            assert thing.item == item
            assert 0 < len(thing.reason) < 300
            assert thing.reason.isprintable()
            assert thing.cure == ERROR_CLASSES[thing.error_class].cure


@every_format
@pytest.mark.parametrize("size", [0, 1, 10_000])
def test_an_item_may_have_another_size_than_it_had_when_it_was_listed(form: Format, item: str, size: int) -> None:
    data = b'{"id": "1", "text": "x"}\n' * 3
    data = gzip.compress(data) if item.endswith(".gz") else data
    assert found(form, item, data, size) == found(form, item, data)


@every_format
def test_an_item_without_bytes_is_no_error(form: Format, item: str) -> None:
    assert all(isinstance(one, RejectedDocument) for one in found(form, item, b""))


def test_the_suite_knows_a_hostile_item_of_each_format() -> None:
    assert {form for form, _, _ in ITEMS.values()} == {form for form, _ in FORMATS}


def _read_all(size: int, cpu_seconds: int, megabytes: int) -> subprocess.CompletedProcess[str]:
    module = "embedding_assets_tests.support.hostile_items"
    command = [sys.executable, "-m", module, str(size), str(cpu_seconds), str(megabytes)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)


def test_no_hostile_item_takes_much_time_or_memory() -> None:
    """At a sixtieth of the largest sizes, where what is quadratic shows: each within 3 s of CPU and 200 MB."""
    done = _read_all(1 << 17, 3, 200)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} {done.stderr[-500:]}"


@pytest.mark.slow
def test_no_hostile_item_of_the_largest_size_takes_much_time_or_memory() -> None:
    """Pages of 8 MB and JSON lines of 32 MB: each within 30 s of CPU and 400 MB."""
    done = _read_all(8 << 20, 30, 400)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} {done.stderr[-500:]}"
