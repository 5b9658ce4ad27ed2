"""The record of the name that a model version was first answered by: one small object of the primary's store for each,
written once.
"""

import logging
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_assets.embedding.model_names import LONGEST, same_model
from embedding_assets.embedding.options import Binding
from embedding_assets.errors import PermanentError, TransientError
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


class Answering:
    """How the endpoint names the model: the name that is recorded, or will be at the first answer with one."""

    def __init__(self, version: ModelVersion, binding: Binding) -> None:
        self._version = version
        self._binding = binding
        self._before: str | None = None
        self.name: str | None = None

    def before(self) -> str | None:
        """What earlier runs were answered by; None where the settings say what counts."""
        self._before = None if self._binding.answers_as else self._version.answered_as()
        return self._before

    def note(self, name: str) -> None:
        """Record the name, if it is the model version's first.

        Raises:
            PermanentError: another run has recorded the name of another model meanwhile.
        """
        if self.name is not None:
            return
        asked = self._binding.name
        try:
            self.name = self._before or self._version.record(name)
        except TransientError as error:  # it holds for this run; what is bought is in the journal
            self.name = name
            _log.warning("how %s is answered is recorded at the next run: %s", asked, error)
        if self._before or self._binding.answers_as:
            return
        if not same_model(self.name, name):
            raise PermanentError(
                f"{asked} is answered by {name} here, and by {self.name} to another run. Cure: have the endpoint serve "
                f"one model; if both names are of one, set answers_as: [{self.name}, {name}]"
            )
        if not same_model(asked, name):
            _log.warning("%s answers as %s: a later answer by another name is refused", asked, name)
