"""Text, Markdown, reStructuredText and HTML, one document an item."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Final

from lxml import etree

from embedding_assets.snapshots.rejections import DocumentErrorClass, RejectedDocument
from embedding_assets.sources.documents import MAX_TEXT_BYTES, Document, normalised, reject, validate
from embedding_assets.sources.formats import Kept, nothing_kept
from embedding_assets.sources.formats.charsets import page_charset
from embedding_assets.sources.formats.html import MAX_HTML_BYTES, BrokenHtmlError, html_to_text
from embedding_assets.sources.formats.titles import MAX_TITLE, title_of

HTML: Final = (".html", ".htm", ".xhtml")
MARKDOWN: Final = (".md", ".markdown", ".mdx")
SUFFIXES: Final = (*MARKDOWN, *HTML, ".txt", ".rst")
"""Of the kinds of text that are known, in any case of their letters. Another item is read as plain text."""


@dataclass(frozen=True)
class Text:
    """An item is one document under the item's name, with the metadata `path` and, where one is found, `title`."""

    is_named_by_item: ClassVar[bool] = True

    @property
    def version(self) -> str:
        """Changes when reading would give other documents for the same bytes."""
        return "files-3 libxml2-" + ".".join(map(str, etree.LIBXML_VERSION))

    def documents(
        self, source: str, item: str, size: int | None, stream: BinaryIO, kept: Kept = nothing_kept
    ) -> Iterator[Document | RejectedDocument]:
        """The item's one document, or why there is none."""
        yield self._document(source, item, size, stream)

    def _document(self, source: str, item: str, size: int | None, stream: BinaryIO) -> Document | RejectedDocument:
        def refused(error_class: DocumentErrorClass, reason: str) -> RejectedDocument:
            return reject(error_class, reason, source=source, item=item, document_id=item)

        is_html = item.lower().endswith(HTML)
        limit = MAX_HTML_BYTES if is_html else MAX_TEXT_BYTES
        if size is not None and size > limit:
            return refused("too-large", f"the file has {size:,} bytes, {limit:,} are allowed")
        data = stream.read(limit + 1)
        if len(data) > limit:
            return refused("too-large", f"the file has over {limit:,} bytes")
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
                return refused("broken-html", f"the page cannot be read to its end: {error}")
        else:
            text = normalised(text)
            title = title_of(text, markdown=item.lower().endswith(MARKDOWN))
        metadata = {"path": item} | ({"title": title[:MAX_TITLE]} if title else {})
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
