"""What an endpoint takes in one request, learned from what it refuses.

A batch that is refused, and whose pieces are all accepted, was too large: of items, or of tokens where the status says
so or as many items were accepted before. One such batch may be an odd answer; two, or one whose refusal names the
limit, are believed, and no later request is larger than what was accepted. The number that a refusal names says where
to cut. Cut in halves, a batch finds a size that is at least half of what would be taken.
"""

import re
from typing import Final, NamedTuple

from embedding_assets.embedding.engine.items import Text, tokens_of
from embedding_assets.embedding.providers.provider import Caps

_LIMIT: Final = re.compile(
    r"(?:max\w*|at most|limit\w*|(?:larger|greater|more|less|fewer) than|exceed\w*|up to|<=?|≤)"
    r"[^\d\n]{0,40}?(\d[\d,_]*)(?![\d.]*\s*(?:[kmg]i?b|bytes?|characters?)\b)([^\d\n]{0,30})",
    re.IGNORECASE,
)
_OF_A_BATCH: Final = re.compile(r"batch|input|item|request|document|text|array|element|entr|embedding", re.IGNORECASE)

_MOST_PIECES: Final = 256  # of a batch, on the word of a hint


class Takes(NamedTuple):
    """The most texts and tokens (of cl100k) that a request may have; None where no limit is known."""

    items: int | None = None
    tokens: int | None = None

    def within(self, caps: Caps) -> Caps:
        """The caps that keep these limits as well."""
        items = min(caps.max_items, self.items or caps.max_items)
        tokens = min(caps.max_tokens_per_request, self.tokens or caps.max_tokens_per_request)
        return caps._replace(max_items=items, max_tokens_per_request=tokens)

    def __or__(self, other: "Takes") -> "Takes":
        """The limits of both."""
        return Takes(_least(self.items, other.items), _least(self.tokens, other.tokens))


ANYTHING: Final = Takes()


class Learning:
    """What is known of one endpoint."""

    def __init__(self, takes: Takes) -> None:
        self.takes = takes
        self._accepted_items = 0
        self._accepted_tokens = 0
        self._suspected = ANYTHING

    def accepted(self, texts: list[Text]) -> None:
        """A request with these texts was accepted."""
        self._accepted_items = max(self._accepted_items, len(texts))
        self._accepted_tokens = max(self._accepted_tokens, tokens_of(texts))

    def too_large(self, texts: list[Text], named: Takes, *, by_size: bool) -> bool:
        """A batch of these was refused, and all of it accepted in pieces; whether that taught a limit.

        `named`: the limit that the refusal names; `by_size`: its status speaks of the request's size.
        """
        items = Takes(items=self._accepted_items) if self._accepted_items < len(texts) else ANYTHING
        tokens = Takes(tokens=self._accepted_tokens) if self._accepted_tokens < tokens_of(texts) else ANYTHING
        if named != ANYTHING:
            limit_learned = items if named.items else tokens
        else:
            limit_learned = next(
                (limit for limit in ((tokens, items) if by_size else (items, tokens)) if limit != ANYTHING), ANYTHING
            )
        before = self.takes
        if limit_learned == ANYTHING:
            return False
        if named == ANYTHING and self._suspected != limit_learned:
            self._suspected = limit_learned
            return False
        self.takes = self.takes | limit_learned
        return self.takes != before


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def hinted(words: str, texts: list[Text]) -> Takes:
    """The limit that a refusal of these texts names, if it names one that they exceed in words of its own."""
    for match in _LIMIT.finditer(words):
        number = int(re.sub("[,_]", "", match[1])[:12])
        if any(match[0] in text.text for text in texts):
            continue
        about = words[max(0, match.start() - 60) : match.end()]
        if "token" in about.casefold():
            if tokens_of(texts) > number >= tokens_of(texts) / _MOST_PIECES:
                return Takes(tokens=number)
        elif _OF_A_BATCH.search(about) and len(texts) > number >= len(texts) / _MOST_PIECES:
            return Takes(items=number)
    return ANYTHING
