"""The record of the name that a model version was first answered by: one small object of the primary's store for each,
written once.
"""

import logging
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_assets.embedding.model_names import LONGEST
from embedding_assets.snapshots.stores import Store

_log = logging.getLogger(__name__)

FOLDER: Final = "models"


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
