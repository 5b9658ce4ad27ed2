"""Cuts a text into chunks of at most so many tokens, each at the best boundary within its reach."""

from dataclasses import dataclass
from typing import Final, NamedTuple
from unicodedata import ucd_3_2_0 as unicode  # a frozen table: a newer Python's must not move a cut

import numpy as np

from embedding_assets.chunking.characters import Positions
from embedding_assets.chunking.layout import HEADING, LINE, SENTENCE, WORD, Layout, layout
from embedding_assets.chunking.tokens import Tokens
from embedding_assets.errors import PermanentError

# How much of its room a chunk must fill for a boundary of each kind (heading to word) to
# end it. A section may be short and be a chunk of its own; other chunks should be half full at least.
_SHARES: Final = (1 / 4, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 4)

# The last chunk has at least this share of the limit, or else the one before it is cut earlier.
_TAIL: Final = 1 / 4

_JOINER: Final = "\u200d"


class Span(NamedTuple):
    """A chunk's place, [start, end) in characters (code points), and its text's tokens in cl100k_base."""

    start: int
    end: int
    tokens: int


def split(text: str, *, max_tokens: int, overlap: int) -> list[Span]:
    """The chunks of `text`, in order: their starts and their ends both increase strictly.

    - `tokens` is exactly what text[start:end] has when it is encoded by itself, never more than `max_tokens`. The
      text is encoded once; only the words at a chunk's two ends are encoded again (`Tokens.count`).
    - Every visible character lies in a chunk. Chunks begin and end with visible ones; a blank text has no chunk.
    - A chunk ends before a heading, if it is a quarter full by then; else between paragraphs, before a list item,
      after a sentence or at a line's end, if it is half full; else between words. Of the best kind that is there,
      the last below the limit. A heading is not parted from what follows; a line that introduces something
      (`Example:`, a term above its indented definition) is only where no other line or sentence ends.
    - A run without white space that is longer than the limit is cut between two tokens, and not inside a character
      with its combining marks, an emoji sequence or a flag, unless one of these is longer than the limit.
    - A fenced or indented code block that fits the limit by itself is whole in one chunk, even where that leaves
      the chunk before it short, or a heading alone.
    - The last chunk is at least a quarter full, unless a code block takes that room, or it is the only one.
    - A chunk begins up to `overlap` tokens (and not more than half of its predecessor) before its predecessor's
      end: at the first sentence there, or else the first line or word. There is no overlap across a heading, out
      of a code block that is kept whole, or where it would push such a block, or the rest of the text, out of the
      chunk.

    The result depends on the arguments and cl100k_base alone. Time is linear in the text (5 MB a CPU second are
    asked for; 8 to 10 measured, bench/chunking.py); memory is about 20 bytes a character.

    Raises PermanentError if `max_tokens` is below 4, or `overlap` is negative or not below half of `max_tokens`;
    UnicodeEncodeError for a lone surrogate, which no reader lets through.
    """
    if max_tokens < 4:
        raise PermanentError(
            f"chunking: max_tokens is {max_tokens}, but one character can have 4 tokens. Cure: set 4 or more"
        )
    if not 0 <= 2 * overlap < max_tokens:
        raise PermanentError(
            f"chunking: overlap is {overlap}; it must be 0 or more, and below half of max_tokens ({max_tokens}), or "
            "chunks would mostly repeat each other. Cure: set a smaller overlap or a larger max_tokens"
        )
    body = text.strip()
    if not body:
        return []
    offset = len(text) - len(text.lstrip())
    tokens = Tokens.of(body)
    if len(tokens) <= max_tokens:
        return [Span(offset, offset + len(body), len(tokens))]
    spans = _Cutter.of(tokens, layout(body), max_tokens, overlap).spans()
    return [Span(offset + start, offset + end, count) for start, end, count in spans]


@dataclass(frozen=True, slots=True)
class _Cutter:
    """A text that needs more than one chunk.

    `start` is where a chunk begins, `fresh` its first character that is in no chunk yet; the overlap lies between.
    """

    tokens: Tokens
    layout: Layout
    boundaries: tuple[Positions, ...]  # the layout's, without those inside kept blocks
    sentences: Positions  # where a sentence, a paragraph or a section may begin: those boundaries together
    kept_starts: Positions  # code blocks that fit the limit
    kept_ends: Positions
    max_tokens: int
    overlap: int

    @classmethod
    def of(cls, tokens: Tokens, layout: Layout, max_tokens: int, overlap: int) -> "_Cutter":
        fits = [tokens.count(start, end) <= max_tokens for start, end in layout.code.tolist()]
        starts, ends = np.ascontiguousarray(layout.code[np.array(fits, dtype=np.bool_)].T)  # searchsorted would copy

        def outside(boundary: Positions) -> Positions:
            begun, over = starts.searchsorted(boundary, "left"), ends.searchsorted(boundary, "right")
            remaining: Positions = boundary[begun == over]
            return remaining

        # Words need no such care: where the limit falls inside a kept block, the chunk ends before the block.
        *structure, words = layout.boundaries
        boundaries = (*map(outside, structure), words)
        sentences = np.sort(np.concatenate(boundaries[: SENTENCE + 1]))
        return cls(tokens, layout, boundaries, sentences, starts, ends, max_tokens, overlap)

    def spans(self) -> list[Span]:
        spans = []
        start = fresh = 0
        while True:
            span = self.span(start, fresh) or self.span(fresh, fresh)
            assert span is not None
            spans.append(span)
            if span.end == len(self.tokens.text):
                return spans
            word = int(self.layout.ends.searchsorted(span.end, "left"))
            whole = self.layout.ends[word] == span.end
            fresh = int(self.layout.starts[word + 1]) if whole else span.end
            start = self.overlapping(span, fresh)

    def span(self, start: int, fresh: int) -> Span | None:
        """The chunk from `start`; None if the overlap leaves no room for what is new (never without overlap)."""
        text_end = len(self.tokens.text)
        limit = self.reach(start)
        if limit == text_end:
            count = self.tokens.count(start, text_end)
            if count <= self.max_tokens:
                return Span(start, text_end, count)
        tail = self.tokens.reach_back(text_end, int(_TAIL * self.max_tokens))
        unbroken = self.outside_code(min(limit, tail))
        limit = unbroken if unbroken > fresh else self.outside_code(limit)
        while limit > fresh:
            end = self.best_end(fresh, limit)
            # Known only now: what the words at the two ends have by themselves.
            count = self.tokens.count(start, end)
            if count <= self.max_tokens:
                return Span(start, end, count)
            limit = self.outside_code(end - 1)
        return None

    def reach(self, start: int) -> int:
        """How far a chunk from `start` may go: as the tokens tell, and over a kept block, which is known to fit."""
        limit = self.tokens.reach(start, self.max_tokens)
        block = int(self.kept_starts.searchsorted(start, "left"))
        kept = block < len(self.kept_starts) and self.kept_starts[block] == start
        return max(limit, int(self.kept_ends[block])) if kept else limit

    def outside_code(self, position: int) -> int:
        """`position`, or the start of the kept block that it lies in."""
        block = int(self.kept_starts.searchsorted(position, "left")) - 1
        inside = block >= 0 and position < self.kept_ends[block]
        return int(self.kept_starts[block]) if inside else position

    def best_end(self, fresh: int, limit: int) -> int:
        """The end of a chunk: after `fresh`, and not after `limit`."""
        block = int(self.kept_starts.searchsorted(limit, "left"))
        limiting = block < len(self.kept_starts) and self.kept_starts[block] == limit
        needed = int(self.kept_ends[block]) if limiting else 0
        for kind, (boundary, share) in enumerate(zip(self.boundaries, _SHARES, strict=True)):
            i = int(boundary.searchsorted(limit, "right"))
            if not i or boundary[i - 1] < fresh + share * (limit - fresh):
                continue
            end = int(boundary[i - 1])
            # To leave a code block's introduction to the next chunk is good only if the block then fits there.
            if kind in (HEADING, WORD) or self.reach(end) >= needed:
                return end
        edges = self.tokens.edges
        between = edges[edges.searchsorted(fresh, "right") : edges.searchsorted(limit, "right")]
        whole = (int(edge) for edge in between[::-1] if not _joined(self.tokens.text, fresh, int(edge)))
        end = next(whole, int(between[-1]) if len(between) else limit)
        word = int(self.layout.starts.searchsorted(end, "left")) - 1
        return min(end, int(self.layout.ends[word]))  # not in the white space after a word

    def overlapping(self, before: Span, fresh: int) -> int:
        """Where the chunk after `before` begins: at `fresh` at the latest."""
        budget = min(self.overlap, before.tokens // 2)
        headings = self.boundaries[HEADING]
        heading = int(headings.searchsorted(before.end, "left"))
        if not budget or (heading < len(headings) and headings[heading] == before.end):
            return fresh
        earliest = max(self.tokens.reach_back(before.end, budget), before.start + 1)
        if self.outside_code(earliest) < earliest:
            earliest = int(self.kept_ends[self.kept_ends.searchsorted(earliest, "right")])
        word = int(self.layout.starts.searchsorted(earliest, "left"))
        for boundary in (self.sentences, self.boundaries[LINE], self.layout.ends):
            i = int(boundary.searchsorted(self.layout.ends[word - 1], "left"))
            if i < len(boundary) and boundary[i] < before.end:
                start = int(self.layout.starts[self.layout.starts.searchsorted(boundary[i], "left")])
                return fresh if self.crowds_out(start, fresh) else start
        return fresh

    def crowds_out(self, start: int, fresh: int) -> bool:
        """Whether a code block, or the rest of the text, fits a chunk from `fresh`, but not one from `start`."""
        short, full = self.reach(start), self.reach(fresh)
        if short < full == len(self.tokens.text):
            return True
        whole = self.kept_ends.searchsorted((short, full), "right")  # blocks that end by then
        return bool(whole[0] < whole[1])


def _joined(text: str, start: int, position: int) -> bool:
    """Whether the character at `position` belongs to the one before it; it looks back to `start` at most."""
    before, after = text[position - 1], text[position]
    if after == _JOINER or before == _JOINER or _is_modifier(after) or unicode.category(after)[0] == "M":
        return True
    if not (_is_flag_letter(before) and _is_flag_letter(after)):
        return False
    letters = 1
    while position - letters > start and _is_flag_letter(text[position - letters - 1]):
        letters += 1
    return letters % 2 == 1


def _is_modifier(character: str) -> bool:
    return "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"  # two of them are a flag
