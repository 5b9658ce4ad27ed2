"""Tokens are those of cl100k_base, lie where they are said to lie, and are counted as if a piece stood alone."""

import subprocess
import sys
from typing import Final

import bpe_openai
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.chunking.tokens import Tokens, _byte_lengths, encode
from embedding_assets_tests.chunking.texts import real_texts, texts, unhurried

CL100K: Final = bpe_openai.get_encoding("cl100k_base")


def test_known_ids_come_out() -> None:
    """What OpenAI's own tiktoken gives for its README's example."""
    assert encode("tiktoken is great!").tolist() == [83, 1609, 5963, 374, 2294, 0]


def test_a_special_token_in_a_document_is_plain_text() -> None:
    assert len(encode("<|endoftext|>")) > 1


def test_encoding_in_pieces_gives_the_tokens_of_the_whole() -> None:
    text = "\n".join(real_texts())[:600_000]  # a dozen pieces, and less than bpe-openai refuses
    assert encode(text).tolist() == CL100K.encode_ordinary(text)


def test_texts_larger_than_the_tokenizer_takes_are_encoded() -> None:
    """bpe-openai refuses a million characters, and more than 200,000 tokens."""
    assert len(encode("ab1 " * 300_000)) == 300_000 * 2 + 1
    assert len(encode("x" * 1_200_000)) == 1_200_000 // 8


@unhurried
@given(texts.filter(bool))
def test_tokens_lie_on_the_characters_that_hold_their_bytes(text: str) -> None:
    character = [i for i, c in enumerate(text) for _ in c.encode()]
    starts, ends, edges, offset = [], [], [], 0
    for token in CL100K.encode_ordinary(text):
        after = offset + len(CL100K.decode_bytes([token]))
        starts.append(character[offset])
        ends.append(character[after - 1] + 1)
        if offset == 0 or character[offset] != character[offset - 1]:
            edges.append(character[offset])
        offset = after

    tokens = Tokens.of(text)

    assert tokens.starts.tolist() == starts
    assert tokens.ends.tolist() == ends
    assert tokens.edges.tolist() == edges


@unhurried
@given(texts.filter(bool), st.data())
def test_a_piece_is_counted_as_if_it_were_encoded_by_itself(text: str, data: st.DataObject) -> None:
    """For pieces as chunks are: with visible characters at both ends. Only then is the end of the text no seam."""
    visible = [i for i, c in enumerate(text) if not c.isspace()] or [0]
    start = data.draw(st.sampled_from(visible))
    end = data.draw(st.sampled_from([i for i in visible if i >= start])) + 1
    assert Tokens.of(text).count(start, end) == len(CL100K.encode_ordinary(text[start:end]))


@unhurried
@given(texts.filter(bool), st.data())
def test_reach_is_the_furthest_that_so_many_tokens_touch(text: str, data: st.DataObject) -> None:
    tokens = Tokens.of(text)
    start = data.draw(st.integers(0, len(text) - 1))
    limit = data.draw(st.integers(1, 20))

    def touching(begin: int, end: int) -> int:
        return int(((tokens.starts < end) & (tokens.ends > begin)).sum())

    end = tokens.reach(start, limit)
    assert touching(start, end) <= limit
    assert end == len(text) or touching(start, end + 1) > limit
    begin = tokens.reach_back(end, limit)
    assert touching(begin, end) <= limit
    assert begin == 0 or touching(begin - 1, end) > limit


def test_each_token_is_as_long_as_the_vocabulary_says() -> None:
    ordinary = [token for token in CL100K.token_byte_values() if token not in CL100K.special_tokens_set]
    assert _byte_lengths().tolist() == [len(token) for token in ordinary[: len(_byte_lengths())]]


def test_the_tokenizer_is_had_without_the_vocabularies_of_other_models() -> None:
    """They are a second of CPU and 60 MB of each process that cuts."""
    script = (
        "import sys; from embedding_assets.chunking.tokens import encode; encode('a text')\n"
        "assert 'bpe_openai.registry' not in sys.modules\n"
        "import bpe_openai; assert bpe_openai.get_encoding('cl100k_base').encode_ordinary('a text') == [64, 1495]"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
