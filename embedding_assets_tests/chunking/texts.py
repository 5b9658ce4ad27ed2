"""Texts for the tests: what people write, and what nobody should."""

from importlib import metadata
from pydoc_data.topics import topics

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# A machine that also runs other things must not fail a property for being slow.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Pieces whose seams are hard for a tokenizer, a word finder or a reader of Markdown and reStructuredText.
_PIECES = [
    *(
        "word",
        "Word",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        "\t",
        ".",
        "! ",
        "? ",
        ".)\n",
        "'s",
        "123456",
        "()",
        "Ab.Cd",
    ),
    *(
        "# H\n",
        "## T\n\n",
        "```\n",
        "```py\n",
        "    code\n",
        "- item\n",
        "1. x\n",
        "===\n",
        "Title\n=====\n",
        "foo:\n\n",
    ),
    *(
        "é",
        "ß",
        "中文",
        "。",
        "，",
        "」",
        "😀",
        "👨‍👩‍👧‍👦",
        "👍🏽",
        "🇩🇪",
        "e\u0301",
        "क़",
        "שלום",
        "ابج",
        "กำ",
        "²",
        "٣",
    ),
    *("\x1c", "\x0c", "\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\ufeff", "<|endoftext|>"),
    *("x" * 50, "==" * 30, " " * 200, "\n" * 40),
]

texts = st.one_of(
    st.lists(st.sampled_from(_PIECES), max_size=200).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
)
"""Any text, mostly of hard pieces."""

_words = st.sampled_from(["index", "vector", "the", "of", "chunk", "loads", "Postgres", "never", "7", "store,", "a"])
_sentences = st.lists(_words, min_size=2, max_size=14).map(lambda words: " ".join(words).capitalize() + ".")
paragraphs = st.lists(_sentences, min_size=1, max_size=6).map(" ".join)
_code = st.lists(_words.map(lambda word: f"{word} = call({word!r})"), min_size=1, max_size=12)


def _fence(lines: list[str]) -> str:
    return "```python\n" + "\n\n".join(lines) + "\n```"


def _section(title: str, blocks: list[str]) -> str:
    return "\n\n".join([f"## {title.strip('.')}", *blocks])


markdown = st.lists(
    st.builds(_section, _sentences, st.lists(st.one_of(paragraphs, _code.map(_fence)), min_size=1, max_size=5)),
    min_size=1,
    max_size=6,
).map("\n\n".join)
"""A document of sections, paragraphs and fenced code."""


def real_texts() -> list[str]:
    """Texts that every machine has: Python's reference topics and the READMEs of what is installed."""
    readmes = (package.metadata.json.get("description") for package in metadata.distributions())
    return [*topics.values(), *(readme for readme in readmes if isinstance(readme, str) and readme.strip())]
