"""Texts for the tests: what people write, and what nobody should."""

from importlib import metadata
from pydoc_data.topics import topics

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# A machine that also runs other things must not fail a property for being slow.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Pieces whose seams are hard for a tokenizer, a word finder or a reader of Markdown and reStructuredText.
_PIECES = [
    *("word", "Word", " ", "  ", "\n", "\n\n", "\r\n", "\r", "\t", ".", "! ", "? ", ".)\n", "'s", "123456", "()"),
    *("# H\n", "## T\n\n", "```\n", "```py\n", "    code\n", "- item\n", "1. x\n", "===\n", "Title\n===\n", "foo:\n\n"),
    *("é", "ß", "中文", "。", "，", "」", "e\u0301", "क़", "שלום", "ابج", "กำ", "²", "٣"),
    *("😀", "👨‍👩‍👧‍👦", "👍🏽", "🇩🇪"),
    *("\x1c", "\x0c", "\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\ufeff", "<|endoftext|>"),
    *("x" * 50, "==" * 30, " " * 200, "\n" * 40),
]

texts = st.one_of(
    st.lists(st.sampled_from(_PIECES), max_size=200).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
)
"""Any text, mostly of hard pieces."""

_WORDS = ["index", "vector", "the", "of", "chunk", "loads", "never", "7", "a", "store,", "region", "to"]


def _paragraph(words: int) -> str:
    """So many words, in sentences of 2 to 12."""
    sentences, rest = [], [_WORDS[i * i % 12] for i in range(words)]
    while rest:
        length = 2 + len(rest) * 7 % 11
        sentences.append(" ".join(rest[:length]).capitalize() + ".")
        rest = rest[length:]
    return " ".join(sentences)


def _fence(calls: int) -> str:
    return "```python\n" + "\n\n".join(f"{_WORDS[i % 12]} = call({i})" for i in range(calls)) + "\n```"


def _section(title: int, blocks: list[str]) -> str:
    return "\n\n".join([f"## {_paragraph(title).strip('.')}", *blocks])


_blocks = st.integers(1, 70).map(_paragraph) | st.integers(1, 14).map(_fence)
markdown = st.lists(
    st.builds(_section, st.integers(1, 12), st.lists(_blocks, min_size=1, max_size=5)), min_size=1, max_size=6
).map("\n\n".join)
"""A document of sections, paragraphs and fenced code."""


def real_texts() -> list[str]:
    """Texts that every machine has: Python's reference topics and the READMEs of what is installed."""
    readmes = (package.metadata.json.get("description") for package in metadata.distributions())
    return [*topics.values(), *(readme for readme in readmes if isinstance(readme, str) and readme.strip())]
