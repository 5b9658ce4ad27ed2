"""The title of a text: what its front matter says, else its first heading.

Every rule looks at one line at a time, and at each character of it a fixed number of times.
"""

import json
from collections.abc import Iterator
from typing import Final

MAX_TITLE: Final = 200
_HEAD: Final = 16_384
"""A title is looked for in so many characters."""


def title_of(text: str, *, markdown: bool) -> str | None:
    """At most `MAX_TITLE` characters. `text` has `\\n` line ends.

    Markdown is read as CommonMark has it: what stands in code, comments, lists and quotations is no heading. One
    within a `:::` box is taken only where no other is. Elsewhere a heading is underlined as in reStructuredText.
    """
    lines = text[:_HEAD].split("\n")
    title = _markdown(lines) if markdown else _underlined(lines)
    return title[:MAX_TITLE] if title else None


def _underlined(lines: list[str]) -> str | None:
    above = ""
    for line in lines:
        under = line.rstrip()
        if len(under) >= max(3, len(above)) and _is_run(under, "=-~^\"'`#*+:._") and any(c.isalnum() for c in above):
            return above
        above = line.strip()
    return None


def _markdown(lines: list[str]) -> str | None:
    fence = _front_matter_end(lines)
    if fence:
        title = _declared("=" if lines[0].startswith("+") else ":", lines[1:fence])
        if title:
            return title
        lines = lines[fence + 1 :]
    boxed: str | None = None
    for title, in_box in _headings(lines):
        if not in_box:
            return title
        boxed = boxed or title
    return boxed


def _front_matter_end(lines: list[str]) -> int:
    """The index of the line that ends it; 0 where there is none."""
    ends = {"---": ("---", "..."), "+++": ("+++",)}.get(lines[0].rstrip(), ())
    return next((n for n, line in enumerate(lines) if n and line.rstrip() in ends), 0)


def _declared(sign: str, lines: list[str]) -> str | None:
    """The value of the key `title` of the outermost level, in YAML (`:`) or TOML (`=`)."""
    for number, line in enumerate(lines):
        if sign == "=" and line.startswith("["):
            return None  # a table: what follows is its own
        key, separator, value = line.partition(sign)
        if not separator or key.rstrip().strip("\"'") != "title":
            continue
        value = value.strip()
        if value[:1] in (">", "|") or value in ('"""', "'''"):  # a text of several lines
            below = (more.strip() for more in lines[number + 1 :])
            value = next((more.removesuffix(value) for more in below if more), "")
        return _unquoted(value)
    return None


def _unquoted(value: str) -> str | None:
    quote = value[:1]
    if quote not in ('"', "'"):
        return value.partition(" #")[0].strip() or None
    end = value.rfind(quote)
    inner = value.strip(quote) if end == 0 else value[1:end]
    if quote == "'":
        return inner.replace("''", "'").strip() or None
    try:
        read = json.loads(f'"{inner}"')  # its escapes are those of YAML and TOML that titles have
    except ValueError:
        read = inner
    return str(read).strip() or None


def _headings(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Each heading, and whether it is in a `:::` box."""
    fence = ""  # the run that opened the code we are in
    until = ""  # what ends the comment we are in
    boxes = 0
    paragraph: list[str] = []  # its lines so far, outside of lists and quotations
    in_list = lazy = False  # lazy: a line now would go on with a list's or a quotation's paragraph
    for line in lines:
        bare = line.strip()
        indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip(" "))
        if until:
            until = "" if until in bare else until
            continue
        if fence:
            if _is_run(bare, fence[0]) and len(bare) >= len(fence):
                fence = ""
            continue
        if not bare:
            paragraph, lazy = [], False
            continue
        if in_list and not lazy and indent < 2:
            in_list = _is_list_item(bare)
        if in_list and indent >= 2:
            fence = _fence(bare)
            continue
        if indent > 3:
            if paragraph:
                paragraph.append(bare)
            continue  # code, or a paragraph that goes on
        fence = _fence(bare)
        until = _comment_end(bare)
        heading = _hashes(bare)
        if heading:
            yield heading, boxes > 0
        if bare.startswith(":::"):
            boxes = max(0, boxes - 1) if _is_run(bare, ":") else boxes + 1
        elif paragraph and (_is_run(bare, "=") or _is_run(bare, "-")):
            yield " ".join(paragraph), boxes > 0
        elif not (heading is not None or fence or until or bare.startswith(("<", ">", "|")) or _is_rule(bare)):
            if _is_list_item(bare):
                in_list = lazy = True
            elif not lazy:
                paragraph.append(bare)
                continue
        else:
            lazy = bare.startswith(">")
        paragraph = []


def _is_run(line: str, characters: str) -> bool:
    """Whether a line is one of the characters, over and over."""
    return line != "" and line[0] in characters and line == line[0] * len(line)


def _is_rule(line: str) -> bool:
    marks = line.replace(" ", "").replace("\t", "")
    return len(marks) >= 3 and _is_run(marks, "-*_")


def _is_list_item(line: str) -> bool:
    head, _, _ = line.partition(" ")
    return head in ("-", "*", "+") or (len(head) <= 10 and head[:-1].isdecimal() and head[-1:] in (".", ")"))


def _fence(line: str) -> str:
    """The run of backticks or tildes that begins code here."""
    run = line[: len(line) - len(line.lstrip(line[0]))]
    if len(run) < 3 or run[0] not in "`~" or (run[0] == "`" and "`" in line[len(run) :]):
        return ""
    return run


def _comment_end(line: str) -> str:
    """What ends the comment that a line begins and does not end: one of HTML, or of MDX."""
    for begin, end in (("<!--", "-->"), ("{/*", "*/}")):
        if line.startswith(begin):
            return "" if end in line[len(begin) :] else end
    return ""


def _hashes(line: str) -> str | None:
    """The text of a `#` heading, without its closing `#`s; empty where it has none; None where it is no heading."""
    rest = line.lstrip("#")
    if not 1 <= len(line) - len(rest) <= 6 or (rest and rest[0] not in " \t"):
        return None
    text = rest.strip(" \t")
    open_end = text.rstrip("#")
    if not open_end or open_end[-1] in " \t":
        return open_end.rstrip(" \t")
    return text
