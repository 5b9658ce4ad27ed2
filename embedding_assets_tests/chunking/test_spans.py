"""What holds for the chunks of any text at all, however hostile; where they are cut well is in test_boundaries.py."""

import itertools
import time
import unicodedata
from typing import Final

import bpe_openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_assets.chunking.spans import Span, split
from embedding_assets.chunking.tokens import encode
from embedding_assets.errors import PermanentError
from embedding_assets_tests.chunking.texts import markdown, real_texts, texts, unhurried

CL100K: Final = bpe_openai.get_encoding("cl100k_base")

limits = st.sampled_from([4, 5, 6, 8, 12, 16, 32, 64, 256]).flatmap(
    lambda most: st.tuples(st.just(most), st.integers(0, (most - 1) // 2))
)


def assert_sound(text: str, spans: list[Span], max_tokens: int) -> None:
    """Exact and bounded tokens, visible ends, strict progress, nothing visible left out."""
    covered = 0
    for span in spans:
        chunk = text[span.start : span.end]
        assert chunk
        assert chunk == chunk.strip()
        assert span.tokens == len(CL100K.encode_ordinary(chunk)) <= max_tokens
        assert not text[covered : span.start].strip()
        covered = span.end
    assert not text[covered:].strip()
    for before, after in itertools.pairwise(spans):
        assert before.start < after.start
        assert before.end < after.end


@settings(unhurried, max_examples=200)
@given(st.one_of(texts, markdown), limits)
def test_chunks_of_any_text_are_sound(text: str, limits: tuple[int, int]) -> None:
    max_tokens, overlap = limits
    assert_sound(text, split(text, max_tokens=max_tokens, overlap=overlap), max_tokens)


def test_chunks_of_real_documents_are_sound() -> None:
    for text in real_texts():
        assert_sound(text, split(text, max_tokens=256, overlap=32), 256)


@unhurried
@given(st.one_of(texts, markdown), limits)
def test_an_overlap_is_at_most_what_was_asked_for_and_half_of_a_chunk(text: str, limits: tuple[int, int]) -> None:
    max_tokens, overlap = limits
    for before, after in itertools.pairwise(split(text, max_tokens=max_tokens, overlap=overlap)):
        # By itself, the repeated text can have two tokens more than where it stands: one for each torn end.
        repeated = len(CL100K.encode_ordinary(text[after.start : before.end]))
        assert repeated <= min(overlap, before.tokens // 2) + 2


@unhurried
@given(st.one_of(texts, markdown), st.text(" \t\r\n\u3000", max_size=20), limits)
def test_white_space_around_a_text_moves_its_chunks_and_changes_none(
    text: str, space: str, limits: tuple[int, int]
) -> None:
    max_tokens, overlap = limits
    shift = len(space)
    moved = [
        Span(start + shift, end + shift, n) for start, end, n in split(text, max_tokens=max_tokens, overlap=overlap)
    ]
    assert split(space + text + space, max_tokens=max_tokens, overlap=overlap) == moved


@pytest.mark.parametrize("blank", ["", " ", "\n\n\t\r\n", "\u3000\u2028\xa0", " " * 100_000])
def test_a_blank_text_has_no_chunks(blank: str) -> None:
    assert split(blank, max_tokens=256, overlap=32) == []


def test_a_text_within_the_limit_is_one_chunk() -> None:
    assert split("  Just a line.\n", max_tokens=256, overlap=32) == [Span(2, 14, 4)]


HOSTILE = {
    "no white space": "x" * 100_000,
    "base64": "aB3/xYz+9" * 12_000,
    "one line": "word " * 40_000,
    "numbers": ",".join(str(i) for i in range(30_000)),
    "white space between": "a" + " " * 100_000 + "b" + "\n" * 100_000 + "c " * 1_000,
    "Windows line ends": "A line.\r\nAnother one.\r\n\r\n" * 3_000,
    "old Macintosh line ends": "A line.\rAnother one.\r\r" * 3_000,
    "right to left": "שלום עולם. مرحبا بالعالم! " * 3_000,
    "no spaces between words": "今天天气很好，我们去公园散步。" * 4_000,
    "emoji families": "👨‍👩‍👧‍👦" * 3_000,
    "flags": "🇩🇪🇫🇷" * 5_000,
    "endless combining marks": "a" + "\u0301" * 20_000,
    "endless joiners": "👨\u200d" * 5_000,
    "binary": "".join(chr(1 + (i * 7919) % 0xD000) for i in range(50_000)),
    "stops": "." * 50_000 + ". " * 20_000,
    "only headings": "# a b\n" * 10_000,
    "only fences": "```\n" * 10_000,
    "only rules": "===\n" * 10_000,
    "a fence, blanks and what no fence may have": "```" + " " * 100_000 + "`\nx y\n" + "~~~" + "\t" * 100_000 + "`\n",
    "a fence never closed": "```\n" + "x y\n" * 20_000,
    "deeper and deeper": "".join(" " * (i % 300) + f"a{i}:\n\n" for i in range(3_000)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_texts_are_cut_soundly_and_in_linear_time(text: str) -> None:
    begin = time.process_time()
    spans = split(text, max_tokens=64, overlap=16)
    assert time.process_time() - begin < 3  # a quarter of a second at most, measured; quadratic code takes minutes
    assert_sound(text, spans, 64)


@pytest.mark.parametrize(
    "text", ["e\u0301" * 2_000, "क़्षि" * 2_000, "👨‍👩‍👧‍👦" * 500, "👍🏽" * 500, "x🇩🇪" * 500], ids=ascii
)
@pytest.mark.parametrize("max_tokens", [31, 32, 64, 65])
def test_no_chunk_begins_inside_a_combined_character_emoji_or_flag(text: str, max_tokens: int) -> None:
    for span in split(text, max_tokens=max_tokens, overlap=0):
        first = text[span.start]
        assert not unicodedata.category(first).startswith("M")
        assert first not in "\u200d🏽🇪"
        assert span.start == 0 or text[span.start - 1] != "\u200d"


def test_a_run_without_boundary_fills_its_chunks() -> None:
    spans = split("x" * 100_000, max_tokens=256, overlap=0)
    assert len(spans) == 49
    assert {span.tokens for span in spans[:-2]} == {256}


@pytest.mark.slow
def test_a_document_of_many_megabytes_is_cut_in_seconds() -> None:
    text = "\n\n".join(real_texts())
    text *= 30_000_000 // len(text) + 1
    begin = time.process_time()
    spans = split(text, max_tokens=256, overlap=32)
    assert time.process_time() - begin < 20  # 3.3 s measured
    assert len(spans) > 25_000
    assert spans[-1].end == len(text.rstrip())


def test_chunking_costs_a_few_times_the_encoding_and_no_more() -> None:
    """5 MB a CPU second at 256 tokens is 5 × the encoding on the machine where that was first asked for."""
    documents = real_texts()

    def seconds(work: object) -> float:
        assert callable(work)
        best = float("inf")
        for _ in range(3):
            begin = time.process_time()
            for text in documents:
                work(text)
            best = min(best, time.process_time() - begin)
        return best

    assert seconds(lambda text: split(text, max_tokens=256, overlap=32)) < 5 * seconds(encode)


@pytest.mark.parametrize(
    ("max_tokens", "overlap", "cure"),
    [(3, 0, "max_tokens to|set 4 or more"), (256, 128, "smaller overlap"), (256, -1, "0 or more"), (0, 0, "set 4")],
)
def test_limits_that_cannot_work_are_refused_with_the_cure(max_tokens: int, overlap: int, cure: str) -> None:
    with pytest.raises(PermanentError, match=cure):
        split("any text", max_tokens=max_tokens, overlap=overlap)
