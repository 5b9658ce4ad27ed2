"""HTML as text: what a reader of the page would see, in reading order, with a bound on how far it can grow."""

import re
from typing import Final

from inscriptis.css_profiles import STRICT_CSS_PROFILE
from inscriptis.html_engine import Inscriptis
from inscriptis.html_properties import Display
from inscriptis.model.config import ParserConfig
from inscriptis.model.html_element import HtmlElement
from inscriptis.model.tag import CustomHtmlTagHandlerMapping
from lxml import etree, html

MAX_HTML_BYTES: Final = 8 << 20
"""The worst markup of 8 MiB (`<p>x<p>x…`) makes a tree of 0.6 GB; the largest single-page manuals have some 5 MB."""


class BrokenHtmlError(ValueError):
    """The parser gave up before the end of the page; the message says where."""


def html_to_text(markup: str) -> tuple[str, str | None]:
    """The page's text and its title (the first `title`, else the first `h1`).

    Table rows are lines with `|` between cells, list items have bullets. Scripts, their `noscript` stand-ins, styles,
    templates and elements hidden by `hidden` or `display: none` are left out.

    Raises:
        BrokenHtmlError: elements nested deeper than libxml2 follows (256), so that text would be lost.
    """
    # Encoded here, so that an encoding which the page declares for its own bytes has no say.
    parser = html.HTMLParser(encoding="utf-8")
    try:
        tree = html.document_fromstring(markup.encode("utf-8", "replace"), parser=parser)
    except etree.ParserError:
        tree = None  # nothing but blanks or comments
    fatal = [entry for entry in parser.error_log if entry.level_name == "FATAL"]
    if fatal:
        raise BrokenHtmlError(f"line {fatal[0].line}: {fatal[0].message.strip()}")
    if tree is None:
        return "", None
    title = _title(tree)
    _prune(tree)
    return Inscriptis(tree, _LAYOUT).get_text().strip(), title


def _title(tree: html.HtmlElement) -> str | None:
    for tag in ("title", "h1"):
        element = tree.find(f".//{tag}")
        if element is not None and (title := " ".join(element.text_content().split())):
            return title
    return None


_HIDDEN = re.compile(r"(?i)(?:^|;)\s*display\s*:\s*none\b")


def _prune(tree: html.HtmlElement) -> None:
    etree.strip_elements(tree, "script", "style", "template", "noscript", with_tail=False)
    for element in [e for e in tree.iter(etree.Element) if "hidden" in e.attrib or "style" in e.attrib]:
        if element.getparent() is not None and ("hidden" in element.attrib or _HIDDEN.search(element.get("style", ""))):
            element.drop_tree()
        else:
            element.attrib.pop("style", None)  # a padding of 999999em would be that many spaces
    for cell in tree.iter("td", "th"):
        cell.tail = " | " if cell.getnext() is not None else None


def _block() -> HtmlElement:
    return HtmlElement(display=Display.block)


# Inscriptis aligns table columns and indents nested lists with spaces: 118 kB of table became 200 MB of text, and
# blanks say nothing to a model. So cells are parted by "|" (in _prune), and lists keep their bullets alone.
_LAYOUT = ParserConfig(
    css={
        **STRICT_CSS_PROFILE,
        **{tag: _block() for tag in ("ul", "ol", "tr", "caption", "section", "dl", "dt", "dd", "details", "summary")},
    },
    custom_html_tag_handler_mapping=CustomHtmlTagHandlerMapping(
        start_tag_mapping=dict.fromkeys(("table", "tr", "td", "th")),
        end_tag_mapping=dict.fromkeys(("table", "td", "th")),
    ),
)
