"""Text, Markdown, reStructuredText and HTML, one document an item."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from lxml import etree

from embedding_assets.sources.documents import (
    MAX_TEXT_BYTES,
    Document,
    ErrorClass,
    Rejected,
    normalised,
    reject,
    validate,
)
from embedding_assets.sources.formats.charsets import page_charset
from embedding_assets.sources.formats.html import MAX_HTML_BYTES, BrokenHtmlError, html_to_text

HTML: Final = (".html", ".htm", ".xhtml")
MARKDOWN: Final = (".md", ".markdown")


@dataclass(frozen=True)
class Text:
    """An item is one document under the item's name, with the metadata `path` and, where one is found, `title`."""

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same bytes."""
        return "files-2 libxml2-" + ".".join(map(str, etree.LIBXML_VERSION))

    def documents(self, source: str, item: str, size: int | None, stream: BinaryIO) -> Iterator[Document | Rejected]:
        """The item's one document, or why there is none."""
        yield self._document(source, item, size, stream)

    def _document(self, source: str, item: str, size: int | None, stream: BinaryIO) -> Document | Rejected:
        def refused(error_class: ErrorClass, reason: str) -> Rejected:
            return reject(error_class, reason, source=source, item=item, document_id=item)

        is_html = item.lower().endswith(HTML)
        limit = MAX_HTML_BYTES if is_html else MAX_TEXT_BYTES
        if size is not None and size > limit:
            return refused("too_large", f"the file has {size:,} bytes, {limit:,} are allowed")
        data = stream.read(limit + 1)
        if len(data) > limit:
            return refused("too_large", f"the file has over {limit:,} bytes")
        charset = page_charset(data) if is_html else _charset(data)
        try:
            text = data.decode(charset)
        except UnicodeDecodeError as error:
            whose = "" if charset in ("utf-8", "utf-16") else ", the charset that it declares"
            return refused("undecodable", f"byte {error.start:,} of the file is not {charset.upper()}{whose}")

        title: str | None
        if is_html and "\0" not in text:  # the parser would hide it
            try:
                text, title = html_to_text(text.removeprefix("\ufeff"))
            except BrokenHtmlError as error:
                return refused("broken_html", f"the page cannot be read to its end: {error}")
        else:
            title = _heading(normalised(text[:_HEAD]), markdown=item.lower().endswith(MARKDOWN))
        metadata = {"path": item} | ({"title": title[:_MAX_TITLE]} if title else {})
        return validate(
            source=source,
            item=item,
            position=None,
            document_id=item,
            text=text,
            metadata=metadata,
        )


def _charset(data: bytes) -> str:
    return "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"


_HEAD: Final = 16_384
"""A title is looked for in so many characters."""

_MAX_TITLE: Final = 200

_FRONT_MATTER = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
_HASHES = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t#]*$")
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+:._])\1{2,}\s*$")


def _heading(head: str, *, markdown: bool) -> str | None:
    """The first heading: underlined as reStructuredText and Markdown do, or after `#` in Markdown."""
    if markdown:
        head = _FRONT_MATTER.sub("", head, count=1)
    fenced = False
    above = ""
    for line in head.split("\n"):
        if markdown and line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced:
            hashes = _HASHES.match(line) if markdown else None
            if hashes is not None and hashes[1]:
                return hashes[1]
            underlined = any(c.isalnum() for c in above) and _UNDERLINE.match(line) is not None
            if underlined and (markdown or len(line.rstrip()) >= len(above)):
                return above
        above = line.strip()
    return None
