"""What a settings file may say, as frozen models: sources, regions, models, and what holds for all of them."""

import os
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from embedding_assets.chunking.options import Chunking
from embedding_assets.embedding.options import Binding, RunBudget
from embedding_assets.errors import PermanentError, Problem
from embedding_assets.options import Options, Share
from embedding_assets.pgvector.options import BuildOptions, TableOptions, VectorOptions
from embedding_assets.settings.fit import is_dsn, misfits, shallow
from embedding_assets.snapshots.names import Name
from embedding_assets.snapshots.slots import SLOTS, Slot
from embedding_assets.sources.options import FilesOptions, JsonlOptions
from embedding_assets.work.options import WorkOptions


class SettingsError(PermanentError):
    """The settings cannot be used; the message has a line for each problem."""


def _store(url: str) -> str:
    if (url.startswith("file:///") and "\0" not in unquote(url)) or re.fullmatch(
        r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[^/?#]+)*/?", url
    ):
        return url.rstrip("/")
    raise Problem("not a store", "write file:///folder, file://./folder, s3://bucket/prefix or gs://bucket/prefix")


def _database(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if text != "embedded" and not re.fullmatch(r"env:[A-Za-z_]\w*", text) and not is_dsn(text):
        raise Problem(
            "not a database",
            'write "embedded", postgresql://user@host:port/database, or env:NAME to take that from a variable',
        )
    return value


class Region(BuildOptions):
    """One region: its object store and its database."""

    store: Annotated[str, AfterValidator(_store)]
    database: Annotated[SecretStr, AfterValidator(_database)] = SecretStr("embedded")
    """`embedded`, a postgresql:// DSN, or `env:NAME` to take one from the environment."""

    def dsn(self) -> str | None:
        """The configured DSN; None for the embedded database. Raises SettingsError where its variable has none."""
        value = self.database.get_secret_value()
        if value == "embedded":
            return None
        if not value.startswith("env:"):
            return value
        name = value.removeprefix("env:")
        dsn = os.environ.get(name, "")
        if not is_dsn(dsn):
            raise SettingsError(
                f"the database is {value}, and that variable {'holds no DSN' if dsn else 'is not set'}. "
                f"Cure: set {name} to postgresql://user@host:port/database."
            )
        return dsn


class _Handling(Options):
    """What holds for a source of any kind."""

    chunking: Chunking = Chunking()
    renamed_from: Name | None = None
    """What this source was called before: its vectors are taken over, and it is forgotten once this one serves."""
    questions: Path | None = None
    """Labelled questions, JSONL as `evaluate --queries` takes it: by them two models are compared before a switch."""
    max_rejected: Share = 0.05
    """Share of the documents, or chunks, that may be dead letters before their check fails instead of warning."""


class FilesSource(FilesOptions, _Handling):
    """A folder of files, and what holds for it."""


class JsonlSource(JsonlOptions, _Handling):
    """JSON lines, and what holds for them."""


Source = Annotated[FilesSource | JsonlSource, Field(discriminator="kind")]


class ModelVersion(Binding, VectorOptions):
    """A slot bound to a model, and how its vectors are stored."""


class Settings(TableOptions):
    """Sources, regions and models."""

    primary_region: Name
    regions: dict[Name, Region] = Field(min_length=1)
    models: dict[Slot, ModelVersion]
    """By slot; one that is not here is empty."""
    live_model: Slot
    """The slot that a region's search begins with; where one is bound it need not be said."""
    run_budget: RunBudget = RunBudget()
    work: WorkOptions = WorkOptions()
    sources: dict[Name, Source] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _slots_know_their_names(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("models"), dict):
            return values
        models = {
            slot: {**model, "slot": slot} if isinstance(model, dict) and slot in SLOTS else model
            for slot, model in values["models"].items()
        }
        bound = [slot for slot in SLOTS if slot in models]
        live = {"live_model": [*bound, *SLOTS][0]} if len(bound) < 2 else {}
        return {**live, **values, "models": models}

    @model_validator(mode="after")
    def _parts_fit(self) -> "Settings":
        for found in misfits(shallow(self)):
            # One is enough here: load_settings, which has the lines, looks for all of them by itself.
            raise PydanticCustomError(
                "misfit",
                "{where}: {what}. Cure: {cure}.",
                {"where": ".".join(found.loc), "what": found.what, "cure": found.cure},
            )
        return self
