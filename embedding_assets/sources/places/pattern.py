"""Files that one path names: a single file, or a glob pattern over files."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape, has_magic
from pathlib import Path

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.places import Item, PassedOver, Unknown
from embedding_assets.sources.places.folder import State, file_item, walk


@dataclass(frozen=True)
class Pattern:
    """A path without wildcards is that one file; one with wildcards is walked from the folder before the first."""

    path: Path

    def list_items(self, source: str) -> Iterator[Item | Unknown | PassedOver | RejectedDocument]:
        """As `walk`.

        Raises:
            PermanentError: there is no such file, or the pattern matches none.
        """
        root, pattern = _split(self.path)
        if not has_magic(pattern):
            return iter([self._single(source)])
        return walk(source, root, [pattern])

    def _single(self, source: str) -> Item:
        try:
            # The settings name this very file, so a link is followed wherever it leads.
            real = self.path.resolve(strict=True)
            state = State.of(real.stat())
        except OSError as error:
            raise PermanentError(
                f"source {source}: {self.path} cannot be read: {error.strerror}. "
                "Cure: correct the source's path; to remove a source, take it out of the settings and run "
                f"`embedding-assets forget {source}`."
            ) from error
        if real.is_dir():
            raise PermanentError(
                f"source {source}: {self.path} is a folder. Cure: name a file, or {self.path}/*.jsonl."
            )
        return file_item(self.path.name, str(real.parent), (real.name,), state, time.time_ns())


def _split(path: Path) -> tuple[Path, str]:
    """The folder to walk and the pattern below it: a folder that exists is never taken for a pattern."""
    root = Path(path.anchor)
    parts = path.parts[1:]
    for done, part in enumerate(parts):
        if has_magic(part) and not (root / part).exists():
            return root, "/".join(parts[done:])
        root /= part
    return path.parent, escape(path.name)
