"""HTML as text: what a reader of the page would see, in reading order.

The page is never a tree: libxml2 tells of its tags and texts one by one, and each is written down as it comes. So time
is linear in the page, and memory is that of its text. (Built as a tree, 1 MB of attributes took 54 s, and 8 MB of
`<p>x` took 0.7 GB.)
"""

import re
from collections.abc import Mapping
from io import StringIO
from typing import Final

from lxml import etree

MAX_HTML_BYTES: Final = 8 << 20
"""The worst markup of 8 MiB (`<p>x<p>x…`) is read in some 10 s; the largest single-page manuals have some 5 MB."""

MAX_DEPTH: Final = 512
"""Where Chromium, too, stops following nested elements. An end tag is looked for among all that are open."""

_PIECE: Final = 1 << 16


class BrokenHtmlError(ValueError):
    """The page cannot be followed to its end; the message says why."""


def html_to_text(markup: str) -> tuple[str, str | None]:
    """The page's text and its title: the first `title` that is not a picture's, else the first `h1`.

    Table rows are lines with `|` between cells, list items have bullets. Left out are scripts, styles, templates, what
    stands in for scripts and frames (`noscript`, `iframe`), and elements that `hidden` or `display: none` hides for
    good. Text that a reader can open is kept: tab panels, what a control names by `aria-controls`, `until-found`.

    Raises:
        BrokenHtmlError: elements are nested deeper than `MAX_DEPTH`.
    """
    layout = _Layout(opened=_opened(markup))
    # Encoded here, so that an encoding which the page declares for its own bytes has no say. Fed in pieces, since
    # libxml2 parses what it has to its end even after the layout has refused to go on: that can take hours.
    parser = etree.HTMLParser(target=layout, encoding="utf-8")
    try:
        for start in range(0, len(markup), _PIECE):
            parser.feed(markup[start : start + _PIECE].encode("utf-8", "replace"))
        if markup:
            parser.close()
    except etree.XMLSyntaxError as error:
        raise BrokenHtmlError(str(error)) from None
    fatal = [entry for entry in parser.error_log if entry.level_name == "FATAL"]
    if fatal:
        raise BrokenHtmlError(f"line {fatal[0].line}: {fatal[0].message.strip()}")
    return layout.text(), layout.title or layout.heading


_CONTROLS = re.compile(r"""(?i)\baria-controls\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")


def _opened(markup: str) -> frozenset[str]:
    """The ids of what the page's controls open."""
    return frozenset(name for found in _CONTROLS.finditer(markup) for name in found[found.lastindex or 0].split())


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNSEEN: Final = _names(
    "script style template noscript iframe noembed noframes annotation annotation-xml desc metadata"
)

# Whatever is in none of these sets parts words by a space: controls, fallbacks of media, elements yet unknown.
_INLINE: Final = _names(
    """a abbr acronym area b base bdi bdo big blink cite code col data del dfn em font html i img ins kbd link map mark
    meta nobr param picture q rb rp rt rtc ruby s samp small source span strike strong sub sup svg time track tspan tt u
    var wbr"""
)
_TABLE: Final = _names("table caption colgroup thead tbody tfoot tr")
_LINES: Final = dict.fromkeys(
    _names(
        """address article aside blockquote body center dd details dialog dir div dl dt fieldset figcaption footer form
        frameset head header hgroup hr layer legend li listing main marquee menu nav ol optgroup plaintext pre search
        section summary ul xmp"""
    ),
    1,
) | dict.fromkeys(_names("figure h1 h2 h3 h4 h5 h6 p"), 2)
"""Element that is a block → how many line ends are around it."""

_VERBATIM: Final = _names("listing plaintext pre textarea xmp")
_BULLETS: Final = ("* ", "+ ", "o ", "- ")

_NO_DISPLAY = re.compile(r"(?i)(?:^|;)\s*display\s*:\s*none\b")
_COUNT = re.compile(r"[0-9]{1,6}")


class _Layout:
    """Writes down what libxml2 tells of a page. What parts two texts is decided when the second one comes."""

    def __init__(self, opened: frozenset[str]) -> None:
        self.title = ""
        self.heading: str | None = None
        self._opened = opened
        self._out = StringIO()
        self._depth = 0
        self._hidden_from = 0  # the depth of the element that hides, 0 where the text is seen
        self._pictures = 0
        self._title_from = 0
        self._heading_from = 0
        self._named: list[str] = []  # the text of the title or heading so far
        self._lists: list[str | int] = []  # a bullet, or the next number
        self._verbatim = 0
        self._verbatim_began = False
        # What stands between the last text and the next one:
        self._lines = 0
        self._bars = 0
        self._space = False
        self._bullet = ""
        self._cell_is_empty = False  # so far; a block within a cell that has no text yet begins no line

    def text(self) -> str:
        return self._out.getvalue().strip()

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise BrokenHtmlError(f"its elements are nested to a depth of over {MAX_DEPTH}")
        if self._hidden_from:
            return
        if tag == "title":
            self._hidden_from = self._depth
            if not self.title and not self._pictures:
                self._title_from, self._named = self._depth, []
        elif (attributes or tag in _UNSEEN) and self._hides(tag, attributes):
            self._hidden_from = self._depth
        elif tag in _INLINE:
            if tag == "q":
                self._write('"')
            elif tag == "svg":
                self._pictures += 1
        elif tag == "br":
            self._part_by(min(self._lines + 1, 2))
        else:
            self._part(tag)
            if tag in ("ul", "menu", "dir"):
                self._lists.append(_BULLETS[len(self._lists) % len(_BULLETS)])
            elif tag == "ol":
                self._lists.append(_number(attributes.get("start")) or 1)
            elif tag == "li":
                self._bullet = self._next_bullet(_number(attributes.get("value")))
            elif tag in _VERBATIM:
                self._verbatim += 1
                self._verbatim_began = True
            elif tag in ("td", "th"):
                self._cell_is_empty = True
            elif tag == "h1" and self.heading is None and not self._heading_from:
                self._heading_from, self._named = self._depth, []

    def end(self, tag: str) -> None:
        depth, self._depth = self._depth, self._depth - 1
        if self._hidden_from:
            if depth == self._hidden_from:
                self._hidden_from = 0
            if depth == self._title_from:
                self._title_from = 0
                self.title = " ".join("".join(self._named).split())
        elif tag in _INLINE or tag == "br":
            if tag == "q":
                self._write('"')
            elif tag == "svg":
                self._pictures -= 1
        else:
            if tag in ("ul", "menu", "dir", "ol"):
                self._lists.pop()
            elif tag == "li":
                self._bullet = ""
            elif tag in _VERBATIM:
                self._verbatim -= 1
            elif tag in ("td", "th"):
                if not self._cell_is_empty:
                    self._lines = 0
                self._bars += 1
                self._cell_is_empty = True
            if depth == self._heading_from:
                self._heading_from = 0
                self.heading = " ".join("".join(self._named).split()) or None
            self._part(tag)

    def data(self, text: str) -> None:
        if self._hidden_from:
            if self._title_from:
                self._named.append(text)
            return
        if self._heading_from:
            self._named.append(text)
        if self._verbatim:
            if self._verbatim_began:
                text = text.removeprefix("\n")
                self._verbatim_began = False
            seen = text.rstrip("\n")
            if seen:
                self._write(seen)
            self._lines += len(text) - len(seen)
        elif words := text.split():
            self._space = self._space or text[0].isspace()
            self._write(" ".join(words))
            self._space = text[-1].isspace()
        else:
            self._space = True

    def close(self) -> None: ...

    def _hides(self, tag: str, attributes: Mapping[str, str]) -> bool:
        if tag in _UNSEEN:
            return not (tag == "template" and "shadowrootmode" in attributes)  # that one is drawn where it stands
        if tag in ("html", "body"):  # a page that hides itself shows itself by a script
            return False
        hidden = attributes.get("hidden", "until-found").strip().lower() != "until-found"
        if not hidden and not _NO_DISPLAY.search(attributes.get("style", "")):
            return False
        return attributes.get("role", "").strip().lower() != "tabpanel" and attributes.get("id") not in self._opened

    def _part(self, tag: str) -> None:
        if tag in _TABLE:
            self._lines, self._bars, self._cell_is_empty = max(self._lines, 1), 0, False
        else:
            self._part_by(_LINES.get(tag, 0))

    def _part_by(self, lines: int) -> None:
        self._space = True
        if not self._cell_is_empty:
            self._lines = max(self._lines, lines)

    def _next_bullet(self, value: int | None) -> str:
        bullet = self._lists[-1] if self._lists else _BULLETS[0]
        if isinstance(bullet, str):
            return bullet
        number = bullet if value is None else value
        self._lists[-1] = number + 1
        return f"{number}. "

    def _write(self, text: str) -> None:
        if self._lines:
            self._out.write("\n" * self._lines)
            self._lines, self._space = 0, False
        if self._bars:
            self._out.write(" |" * self._bars + " ")
            self._bars = 0
        elif self._space:
            self._out.write(" ")
        if self._bullet:
            self._out.write(self._bullet)
            self._bullet = ""
        self._out.write(text)
        self._space = self._cell_is_empty = False


def _number(digits: str | None) -> int | None:
    return int(digits) if digits is not None and _COUNT.fullmatch(digits) else None
