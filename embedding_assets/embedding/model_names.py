"""How an endpoint names a model in its answers, beside how it is asked for: which names are of one model, and the
record of the name that a model version was first answered by.

The record is one small object of the primary's store for a model version, written once. An endpoint may name its model
as it likes (a deployment, an alias, a path); that it names another one later means that it serves another.
"""

import logging
import re
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_assets.snapshots.stores import Store

_log = logging.getLogger(__name__)

FOLDER: Final = "models"

LONGEST: Final = 300
"""Characters of a name that count."""

# What an alias's own name has at its end: `-2505`, `-2025-05-13`, `.Q8_0.gguf`.
_DATED: Final = re.compile(r"-\d{4}(-?\d\d){0,2}|(\.[a-z0-9_]+)?\.gguf")

# OpenAI names this one otherwise than it is asked for.
_ALIASES: Final = {"text-embedding-ada-002-v2": "text-embedding-ada-002"}

# Names that everybody knows: who asks for one of them is not content with another.
_KNOWN: Final = frozenset({"text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"})


def same_model(known: str, answered: str) -> bool:
    """Whether the names mean one model: servers drop or add a path before it and a tag (`:latest`, `@sha`) after it.

    An alias is answered by the name with its date, a file by the name with its quantisation and `.gguf`. A version is
    another model (e5-small and e5-small-v2).
    """
    known, answered = _plain(known), _plain(answered)
    if answered.startswith(known) and _DATED.fullmatch(answered, len(known)):
        return True
    shorter, longer = sorted((known, answered), key=len)
    return longer.startswith(shorter) and longer[len(shorter) :][:1] in ("", ":", "@")


def may_answer(asked: str, answered: str) -> bool:
    """Whether who is asked for one model may name it so, as far as the names tell: a first answer, that is."""
    return not {_plain(asked), _plain(answered)} <= _KNOWN or same_model(asked, answered)


def _plain(name: str) -> str:
    name = name.rpartition("/")[2].casefold()
    return _ALIASES.get(name, name)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    answered_as: str = Field(min_length=1, max_length=LONGEST)


class ModelVersion(NamedTuple):
    """What made the vectors of an asset. `model`: the 16 hex digits that name it in the store."""

    store: Store
    asset: str
    model: str

    @property
    def _path(self) -> str:
        return f"{FOLDER}/{self.asset}/{self.model}.json"

    def answered_as(self) -> str | None:
        """The name that it was first answered by, if any run has recorded one."""
        data = self.store.get(self._path)
        if data is None:
            return None
        try:
            return _Record.model_validate_json(data).answered_as
        except ValidationError:
            _log.warning("store %s: %s is damaged, and passed over", self.store.url, self._path)
            return None

    def record(self, name: str) -> str:
        """Record the name that it is answered by, unless there is one; the one that is recorded then."""
        if self.store.put_if_absent(self._path, _Record(answered_as=name).model_dump_json().encode()):
            return name
        return self.answered_as() or name
