"""A folder of text, Markdown, reStructuredText and HTML files, one document each."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from embedding_assets.sources.documents import (
    MAX_TEXT_BYTES,
    Document,
    ErrorClass,
    Rejected,
    normalised,
    reject,
    validate,
)
from embedding_assets.sources.html import MAX_HTML_BYTES, BrokenHtmlError, html_to_text
from embedding_assets.sources.walk import Item, open_item, unreadable, walk

HTML: Final = (".html", ".htm", ".xhtml")
MARKDOWN: Final = (".md", ".markdown")


@dataclass(frozen=True)
class FilesReader:
    """Documents whose id is their path below `root`, with the metadata `path` and, where one is found, `title`."""

    source: str
    root: Path
    include: tuple[str, ...]

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same bytes."""
        return f"files-1 inscriptis-{version('inscriptis')}"

    def list_items(self) -> Iterator[Item | Rejected]:
        """As `walk`."""
        return walk(self.source, self.root, self.include)

    def read_item(self, item: Item) -> Iterator[Document | Rejected]:
        """The item's one document, or why there is none."""
        yield self._document(item)

    def _document(self, item: Item) -> Document | Rejected:
        def refused(error_class: ErrorClass, reason: str) -> Rejected:
            return reject(error_class, reason, source=self.source, item=item.name, document_id=item.name)

        is_html = item.name.lower().endswith(HTML)
        limit = MAX_HTML_BYTES if is_html else MAX_TEXT_BYTES
        if item.size > limit:
            return refused("too_large", f"the file has {item.size:,} bytes, {limit:,} are allowed")
        try:
            with open_item(item) as stream:
                data = stream.read(limit + 1)
        except OSError as error:
            return unreadable(error, source=self.source, item=item)
        if len(data) > limit:
            return refused("too_large", f"the file grew beyond {limit:,} bytes while it was read")
        try:
            text = _decoded(data)
        except UnicodeDecodeError as error:
            return refused("undecodable", f"byte {error.start:,} of the file is not {error.encoding.upper()}")

        title: str | None
        if is_html and "\0" not in text:  # the parser would hide it
            try:
                text, title = html_to_text(text)
            except BrokenHtmlError as error:
                return refused("broken_html", f"the page cannot be read to its end: {error}")
        else:
            title = _heading(normalised(text[:_HEAD]), markdown=item.name.lower().endswith(MARKDOWN))
        metadata = {"path": item.name} | ({"title": title[:_MAX_TITLE]} if title else {})
        return validate(
            source=self.source,
            item=item.name,
            position=None,
            document_id=item.name,
            text=text,
            metadata=metadata,
        )


def _decoded(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8")


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
