"""Items that cost a careless reader hours or gigabytes. As a program it reads each within limits that a kernel keeps:

    python -m embedding_assets_tests.support.hostile_items BYTES CPU_SECONDS MEGABYTES

It prints each item's name before it is read, and so the last one is the one that went over a limit. Limits count this
process's own CPU time, so a busy machine makes no test fail.
"""

import gzip
import io
import resource
import sys
from collections.abc import Callable
from typing import Final

from embedding_assets.sources.formats import Format
from embedding_assets.sources.formats.jsonl import Jsonl
from embedding_assets.sources.formats.text import Text

TEXT: Final = Text()
JSONL: Final = Jsonl("id", "text", ("m",))


def filled(head: bytes, piece: bytes, tail: bytes = b"") -> Callable[[int], bytes]:
    """`piece` over and over, between `head` and `tail`, as often as the size takes."""
    return lambda size: head + piece * ((size - len(head) - len(tail)) // len(piece)) + tail


def numbered(head: bytes, piece: bytes, tail: bytes = b"") -> Callable[[int], bytes]:
    """As `filled`, with a number in each piece."""

    def make(size: int) -> bytes:
        made = bytearray(head)
        for number in range(size // (len(piece) + 5)):
            made += piece % number
        return bytes(made + tail)

    return make


_PAGES: Final = {
    "attributes": numbered(b"<p ", b"a%d ", b">x</p>"),
    "one attribute again and again": filled(b"<p ", b"a ", b">x"),
    "attributes of elements": numbered(b"", b"<p a%d=1>x"),
    "paragraphs": filled(b"", b"<p>x"),
    "cells": filled(b"<table><tr>", b"<td>x"),
    "tables in tables": filled(b"", b"<table><tr><td>"),
    "empty cells": filled(b"<table><tr>", b"<td>", b"x"),
    "phrases": filled(b"<p>", b"<i>x</i> "),
    "formatting around blocks": filled(b"", b"<b><p>x"),
    "nesting": filled(b"", b"<div>"),
    "nesting just allowed, and wrong ends": filled(b"<b>" * 500, b"</x>"),
    "nesting just allowed, and other ends": filled(b"<b>" * 500, b"<i></b>"),
    "lists": filled(b"", b"<ol><li>x</ol>"),
    "bullets": filled(b"<ul>", b"<li>"),
    "lines": filled(b"", b"<br>"),
    "quotations": filled(b"", b"<q>"),
    "verbatim lines": filled(b"<pre>", b"x\n"),
    "hidden": filled(b"", b"<i hidden>x</i>"),
    "styles": filled(b"<i style='", b"; ", b"'>x</i>"),
    "blanks in a style": filled(b"<i style=';", b" ", b"'>x</i>"),
    "controls": numbered(b"", b"<a aria-controls='a%d'>"),
    "controls without an end": filled(b"", b'<a aria-controls="'),
    "blanks in a control": filled(b"<a aria-controls", b" ", b"="),
    "titles": filled(b"", b"<title></title>"),
    "titles in a picture": filled(b"<svg>", b"<title>x</title>"),
    "headings": filled(b"", b"<h1></h1>"),
    "comments": filled(b"", b"<!---->"),
    "comments without an end": filled(b"", b"<!--"),
    "tags without an end": filled(b"", b"<"),
    "scripts without an end": filled(b"<script>", b"</scrip"),
    "references": filled(b"", b"&#x41;"),
    "references without an end": filled(b"", b"&a"),
    "elements of any name": numbered(b"", b"<x%d>"),
    "declarations": filled(b"", b"<meta "),
    "a declaration of one word": filled(b"<meta ", b"a"),
    "words": filled(b"", b"x "),
    "pieces of an unknown charset": filled(b"<meta charset=gbk>", b"\x81\x30\x81\x30"),
}

# fmt: off
_STARTS: Final = (
    "# ", "#", "-", "- ", "> ", "`", "~", ":", "<!--", "title: '", " ", "\t", "* ", "1. ", "=", "+++\n", "---\n", "{/*",
    "```\n", "x\n", "- x\n", "    x\n", ":::x\n", "x ", '"', "***\n",
)
# fmt: on
_MARKDOWN: Final = {piece: filled(piece.encode(), piece.encode(), b"x\n") for piece in _STARTS} | {
    f"a heading, then {piece}": filled(b"# ", piece.encode(), b"x\n") for piece in _STARTS
}

_LINES: Final = {
    "lists": filled(b'{"id":"1","text":"x","y":[', b"[],", b"1]}\n"),
    "objects": filled(b'{"id":"1","text":"x","y":[', b'{"a":1},', b"1]}\n"),
    "numbers": filled(b'{"id":"1","text":"x","y":[', b"1.5,", b"1]}\n"),
    "strings": filled(b'{"id":"1","text":"x","y":[', b'"",', b"1]}\n"),
    "keys": numbered(b'{"id":"1","text":"x"', b',"%d":1', b"}\n"),
    "strings in a row": filled(b"[" * 300, b'""'),
    "quotes in a string": filled(b'{"id":"1","text":"', b'\\"', b'"}\n'),
    "escapes": filled(b'{"id":"1","text":"', b"\\u00e9", b'"}\n'),
    "brackets in a string": filled(b'{"id":"1","text":"', b"[", b'"}\n'),
    "nesting": filled(b"", b"["),
    "ends": filled(b"[" * 300, b"]"),
    "one integer": filled(b'{"id":"1","text":"x","m":', b"9", b"}\n"),
    "blank lines": filled(b"", b"\n"),
    "lines of blanks": filled(b"", b" \r\n"),
    "one line of blanks": filled(b"", b" "),
    "one line": filled(b"", b"x"),
    "UTF-16": filled(b"\xff\xfe", b"\n\0"),
    "halves of UTF-16": filled(b"\xff\xfe", b"\x00\xd8"),
}


def _bomb(piece: bytes) -> Callable[[int], bytes]:
    """A thousand times as large unpacked, so that a fourth of the others' size is plenty."""
    packed = gzip.compress(piece * ((1 << 20) // len(piece)))
    return lambda size: packed * (size // 4 // len(packed))


ITEMS: Final[dict[str, tuple[Format, str, Callable[[int], bytes]]]] = {
    **{f"page of {name}": (TEXT, "a.html", make) for name, make in _PAGES.items()},
    **{f"Markdown of {name!r}": (TEXT, "a.md", make) for name, make in _MARKDOWN.items()},
    "text of marks": (TEXT, "a.txt", filled(b"e", "\u0301\u0327".encode())),
    **{f"JSON lines of {name}": (JSONL, "a.jsonl", make) for name, make in _LINES.items()},
    "a gzip bomb of blank lines": (JSONL, "a.jsonl.gz", _bomb(b"\n")),
    "a gzip bomb of one line": (JSONL, "a.jsonl.gz", _bomb(b"x")),
    "a gzip bomb of UTF-16": (JSONL, "a.jsonl.gz", _bomb(b"\xff\xfe")),
    "empty gzip members": (JSONL, "a.jsonl.gz", filled(b"", gzip.compress(b""))),
}


def main(size: int, cpu_seconds: int, megabytes: int) -> None:
    """Read every item. The process ends by a signal or a MemoryError where one goes over the limits."""
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))
    for name, (form, item, make) in ITEMS.items():
        print(name, flush=True)
        data = b""
        data = make(size if form is TEXT else 4 * size)  # a line may be four times as large as a page
        usage = resource.getrusage(resource.RUSAGE_SELF)
        so_far = int(usage.ru_utime + usage.ru_stime) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (so_far + cpu_seconds, resource.RLIM_INFINITY))
        # Titles are looked for in a head: what is quadratic there shows only in many files.
        for _ in range(20 if item == "a.md" else 1):
            for _ in form.documents("s", item, len(data), io.BytesIO(data)):
                pass


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
