"""Where a text may be cut: its words, the best boundaries between them, and its code blocks.

Everything is found for the whole text at once, as arrays over its words and lines; Python loops only over what
is rare (headings, fences, indented blocks), and regular expressions look at the few lines that could match.
"""

import re
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedding_assets.chunking.characters import (
    CLOSER,
    JOINT,
    LOWER,
    SPACE,
    STOP,
    Codes,
    Kinds,
    Positions,
    code_points,
)

# Kinds of boundary, the best first.
HEADING: Final = 0
PARAGRAPH: Final = 1
ITEM: Final = 2  # of a list
SENTENCE: Final = 3
LINE: Final = 4
WORD: Final = 5

_ATX: Final = re.compile(r"#{1,6}[ \t]+\S")
_RULE: Final = re.compile(r"([=\-~^\"'`*+#:._])\1{2,}")
# Possessive: a line of a fence, 80,000 blanks and a backtick took 19 s, and four times that at twice the length.
_FENCE: Final = re.compile(r"(`{3,}+|~{3,}+)[ \t]*+([^`]*+)")


class Layout(NamedTuple):
    starts: Positions  # of the words: runs of visible characters
    ends: Positions
    boundaries: tuple[Positions, ...]
    """By kind: where a chunk may end. Always the end of a word, so that no chunk ends in white space."""
    code: Positions  # (blocks, 2): [start, end) of each fenced or indented code block, visible ends, in order


class _Lines(NamedTuple):
    """The lines that have words, in order."""

    first: Positions  # the line's first word
    after: Positions  # the word after its last
    start: Positions  # its first visible character
    end: Positions  # after its last visible character
    indent: Positions  # in columns; a leading tab counts 4
    gap: NDArray[np.bool_]  # nothing or a blank line stands before
    introduced: NDArray[np.bool_]  # the line before ends with a colon, or stands less deep (a term, an item)
    item: NDArray[np.bool_]  # a list item's first line

    def read(self, text: str, line: int) -> str:
        return text[self.start[line] : self.end[line]]


def layout(text: str) -> Layout:
    """The layout of a text that begins and ends with visible characters."""
    codes, kinds = code_points(text)
    starts, ends = _words(kinds)
    lines = _lines(codes, starts, ends)
    fenced, in_fence = _fenced(text, codes, lines)
    indented, in_indented = _indented(codes, lines, in_fence)
    headings = _headings(text, codes, lines, in_fence | in_indented)

    kind = np.full(len(starts), WORD, dtype=np.uint8)  # of the boundary before each word
    kind[lines.first] = LINE
    kind[_sentences(codes, kinds, starts, ends)] = SENTENCE
    kind[lines.first[lines.item]] = ITEM
    kind[lines.first[lines.gap & ~lines.introduced]] = PARAGRAPH
    for begin, last in headings:
        if kind[lines.first[begin]] != WORD:
            kind[lines.first[begin]] = HEADING
        # A heading is not cut, nor cut off from what follows it: be that another heading, which then is WORD.
        kind[lines.first[begin] + 1 : lines.after[last] + 1] = WORD
    kind[0] = WORD
    boundaries = tuple(ends[np.flatnonzero(kind[1:] == k)] for k in range(WORD))
    code = np.array(sorted(fenced + indented), dtype=np.int64).reshape(-1, 2)
    return Layout(starts, ends, (*boundaries, ends), code)


def _words(kinds: Kinds) -> tuple[Positions, Positions]:
    visible = (kinds & SPACE) == 0
    changes = np.flatnonzero(visible[1:] != visible[:-1]) + 1
    starts = np.concatenate(([0], changes[1::2]))
    ends = np.concatenate((changes[::2], [len(kinds)]))
    joint = (kinds[:-1] & JOINT) != 0
    if joint.any():
        joints = np.flatnonzero(joint & visible[1:] & ((kinds[1:] & (JOINT | CLOSER | STOP)) == 0)) + 1
        starts = np.sort(np.concatenate((starts, joints)))
        ends = np.sort(np.concatenate((ends, joints)))
    return starts, ends


def _sentences(codes: Codes, kinds: Kinds, starts: Positions, ends: Positions) -> Positions:
    """The words that begin a sentence: after a stop (and at most three closers), and not in lower case."""
    words = np.flatnonzero(kinds[ends[:-1] - 1] & (STOP | CLOSER))
    last = ends[words] - 1
    for _ in range(3):
        last -= ((kinds[last] & CLOSER) != 0) & (last > starts[words])
    ended = (kinds[last] & STOP) != 0
    first, length = codes[starts[words]], last - starts[words]
    initial = length == 1  # "J. Smith"
    ordinal = (length <= 3) & (first >= ord("0")) & (first <= ord("9"))  # "12. Open"
    abbreviation = codes[last - 2] == ord(".")  # "e.g. Python", "U.S. Army"
    dotted = (codes[last] == ord(".")) & (initial | ordinal | abbreviation)
    begins: Positions = words[ended & ~dotted & ((kinds[starts[words + 1]] & LOWER) == 0)] + 1
    return begins


def _lines(codes: Codes, starts: Positions, ends: Positions) -> _Lines:
    begins = np.concatenate(([0], np.flatnonzero(codes == ord("\n")) + 1))
    first = starts.searchsorted(begins)
    after = np.append(first[1:], len(starts))
    filled = np.flatnonzero(after > first)
    first, after, begins = first[filled], after[filled], begins[filled]
    start, end = starts[first], ends[after - 1]
    marker, length, close = codes[start], ends[first] - start, codes[ends[first] - 1]
    dash = (marker == ord("-")) | (marker == ord("*")) | (marker == ord("+")) | (marker == ord("•"))
    digit = (marker >= ord("0")) & (marker <= ord("9"))
    number = digit & (length <= 4) & ((close == ord(".")) | (close == ord(")")))
    indent = start - begins + 3 * (codes[begins] == ord("\t"))
    introduced = np.zeros(len(first), dtype=np.bool_)
    introduced[1:] = (codes[end[:-1] - 1] == ord(":")) | (indent[1:] > indent[:-1])
    return _Lines(
        first=first,
        after=after,
        start=start,
        end=end,
        indent=indent,
        gap=np.diff(filled, prepend=-2) > 1,
        introduced=introduced,
        item=(dash & (length == 1) | number) & (after - first > 1),
    )


def _fenced(text: str, codes: Codes, lines: _Lines) -> tuple[list[tuple[int, int]], NDArray[np.bool_]]:
    """Fenced code blocks, and which lines lie in one. A fence that is never closed opens nothing."""
    blocks = []
    inside = np.zeros(len(lines.first), dtype=np.bool_)
    fence, opened = "", 0
    marker = codes[lines.start]
    for line in np.flatnonzero((marker == ord("`")) | (marker == ord("~"))).tolist():
        match = _FENCE.fullmatch(lines.read(text, line))
        if match is None:
            continue
        if not fence:
            fence, opened = match[1], line
        elif match[1].startswith(fence) and not match[2]:
            blocks.append((int(lines.start[opened]), int(lines.end[line])))
            inside[opened : line + 1] = True
            fence = ""
    return blocks, inside


def _indented(
    codes: Codes, lines: _Lines, in_fence: NDArray[np.bool_]
) -> tuple[list[tuple[int, int]], NDArray[np.bool_]]:
    """Indented code blocks, and which lines lie in one.

    A block stands after a blank line and is indented by 4 columns after a paragraph that is not (Markdown), or by
    2 more than a line before it that ends with a colon (reStructuredText); what follows, as far indented, belongs
    to it. List items and their paragraphs are no code.
    """
    blocks = []
    inside = np.zeros(len(lines.first), dtype=np.bool_)
    first = np.flatnonzero(lines.gap)  # each paragraph's first line
    last = np.append(first[1:], len(lines.first)) - 1
    indent = np.minimum.reduceat(np.where(in_fence, 0, lines.indent), first)
    item, margin = lines.item[first], lines.indent[last]
    colon = codes[lines.end[last] - 1] == ord(":")
    begins = ~item[1:] & (
        (colon[:-1] & (indent[1:] >= margin[:-1] + 2)) | ((indent[1:] >= 4) & (margin[:-1] == 0) & ~item[:-1])
    )
    done = 0
    for block in (np.flatnonzero(begins) + 1).tolist():
        if block < done:
            continue
        done = block + 1
        while done < len(first) and indent[done] >= indent[block]:
            done += 1
        blocks.append((int(lines.start[first[block]]), int(lines.end[last[done - 1]])))
        inside[first[block] : last[done - 1] + 1] = True
    return blocks, inside


def _headings(text: str, codes: Codes, lines: _Lines, in_code: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The first and last line of each heading: `# Title`, or a title over (or between) rows of one character."""
    marked = (codes[lines.start] == ord("#")) & (lines.indent <= 3) & ~in_code
    headings = [(line, line) for line in np.flatnonzero(marked).tolist() if _ATX.match(lines.read(text, line))]
    ruled = (lines.after - lines.first == 1) & (lines.end - lines.start >= 3) & ~lines.gap & ~in_code
    ruled &= codes[lines.start] == codes[lines.end - 1]
    for line in np.flatnonzero(ruled).tolist():
        rule, title = lines.read(text, line), line - 1
        if not _RULE.fullmatch(rule):
            continue
        over = not lines.gap[title] and lines.read(text, title - 1) == rule
        under = lines.gap[title] and lines.indent[title] == 0
        # Only = and - may be shorter than the title (Markdown); "Loading" over "..." is no heading.
        if (over or under) and (rule[0] in "=-" or len(rule) >= lines.end[title] - lines.start[title]):
            headings.append((title - over, line))
    return sorted(headings)
