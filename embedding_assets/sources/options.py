"""What may be said of a source: the place of its items, their format, and how much of it may be gone at once.

A kind of source is one place with one format.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from embedding_assets.errors import Problem
from embedding_assets.options import Options, Share
from embedding_assets.sources.formats.text import SUFFIXES


def _path(path: Path) -> Path:
    if "\0" in str(path):
        raise Problem("has a NUL character, as no path has", "write it without")
    return path


class _SourceOptions(Options):
    path: Annotated[Path, AfterValidator(_path)]
    max_deleted: Share = 0.2
    """Share of the documents that may be gone at once without somebody allowing it."""


def _pattern(pattern: str) -> str:
    if any(segment in ("", ".", "..") for segment in pattern.split("/")):
        raise Problem("not a pattern below the source's path", 'write one such as "**/*.md" or "guide/*.txt"')
    return pattern


class FilesOptions(_SourceOptions):
    """A folder of text, Markdown, reStructuredText and HTML files."""

    kind: Literal["files"]
    include: Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], Field(min_length=1)] = tuple(
        f"**/*{suffix}" for suffix in SUFFIXES
    )


class JsonlOptions(_SourceOptions):
    """A .jsonl or .jsonl.gz file, or a glob of them: one document a line."""

    kind: Literal["jsonl"]
    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    metadata: tuple[str, ...] = ()
