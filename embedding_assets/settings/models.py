"""What a settings file may say, as frozen models: sources, regions, models, and what holds for all of them."""

import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    SecretStr,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from embedding_assets.chunking.options import Chunking
from embedding_assets.embedding.options import Binding
from embedding_assets.errors import PermanentError, Problem
from embedding_assets.pgvector.options import QuietHours
from embedding_assets.settings.fit import is_dsn, misfits, shallow
from embedding_assets.snapshots.slots import SLOTS, Slot
from embedding_assets.sources.options import FilesOptions, JsonlOptions

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")]


class SettingsError(PermanentError):
    """The settings cannot be used; the message has a line for each problem."""


class _Frozen(BaseModel):
    # An input may be a DSN with a password: no error repeats it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _store(url: str) -> str:
    if url.startswith("file:///") or re.fullmatch(r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[^/?#]+)*/?", url):
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


class Region(_Frozen):
    """One region: its object store and its database."""

    store: Annotated[str, AfterValidator(_store)]
    database: Annotated[SecretStr, AfterValidator(_database)] = SecretStr("embedded")
    """`embedded`, a postgresql:// DSN, or `env:NAME` to take one from the environment."""
    build_memory: ByteSize | None = Field(default=None, ge=1 << 20, lt=1 << 41)
    """What the build of an index may use at most; None: a quarter of an embedded server's machine, another server's
    shared_buffers and at least 2 GiB."""
    build_workers: int | None = Field(default=None, ge=0, le=1024, strict=True)
    """Besides the process that builds; None: the server's max_parallel_maintenance_workers."""

    def dsn(self) -> str | None:
        """The configured DSN; None for the embedded database. Raises SettingsError where its variable has none."""
        value = self.database.get_secret_value()
        if value == "embedded":
            return None
        if not value.startswith("env:"):
            return value
        name = value.removeprefix("env:")
        found = os.environ.get(name, "")
        if not is_dsn(found):
            raise SettingsError(
                f"the database is {value}, and that variable {'holds no DSN' if found else 'is not set'}. "
                f"Cure: set {name} to postgresql://user@host:port/database."
            )
        return found


class _Handling(BaseModel):
    """What holds for a source of any kind."""

    chunking: Chunking = Chunking()
    renamed_from: Name | None = None
    """What this source was called before: its vectors are taken over, and it is forgotten once this one serves."""
    max_rejected: float = Field(default=0.05, ge=0, le=1, strict=True)
    """Share of the documents, or chunks, that may be dead letters before their check fails instead of warning."""


class FilesSource(FilesOptions, _Handling):
    """A folder of files, and what holds for it."""


class JsonlSource(JsonlOptions, _Handling):
    """JSON lines, and what holds for them."""


Source = Annotated[FilesSource | JsonlSource, Field(discriminator="kind")]


class RunBudget(_Frozen):
    """What one run may use in all its tries and for both models; the next run goes on where it stopped.

    The seconds count from when the first embeddings step of the run began.
    """

    max_cost_usd: float | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, gt=0, strict=True)
    max_seconds: float | None = Field(default=None, gt=0)


class Hybrid(_Frozen):
    """Hybrid search: what an index on the words costs is measured in `pgvector/indexes/inverted.py`."""

    language: str = Field(min_length=1)
    """A text search configuration of the database, such as `english`, or `simple` for words as they are."""


def _quiet_hours(text: object) -> QuietHours:
    try:
        hours = QuietHours.parse(str(text))
    except ValueError:
        raise Problem("not hours of a day", 'write "01:00-05:00", in UTC, or "22:30-04:00" over midnight') from None
    if hours.minutes < 60:
        raise Problem(
            f"{hours.minutes} minutes are too short: upkeep is started on the hour, and might never be in them",
            "write an hour or more",
        )
    return hours


RoleName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[^\x00]*$")]


def _readers_or_off(given: object) -> object:
    if given == "off":  # in quotes; without them YAML has read it as false
        return False
    if given is None or given is False or isinstance(given, dict):
        return given
    raise Problem(
        "not the sources that each database role may read",
        "write {my_app: [my_source]}, or off to have it switched off",
    )


ReadersOrOff = Annotated[
    Annotated[dict[RoleName, tuple[str, ...]], Tag("readers")] | Annotated[Literal[False], Tag("off")],
    Discriminator(lambda given: "off" if given is False else "readers"),
]


class Settings(_Frozen):
    """Sources, regions and models."""

    primary_region: Name
    regions: dict[Name, Region] = Field(min_length=1)
    models: dict[Slot, Binding]
    live_model: Slot
    run_budget: RunBudget = RunBudget()
    sources: dict[Name, Source] = Field(min_length=1)
    hybrid: Hybrid | None = None
    row_level_security: Annotated[ReadersOrOff | None, BeforeValidator(_readers_or_off)] = None
    """The sources that each database role may read; False, and every role that may search reads all; None leaves the
    databases as they are, for a line that is lost must open nothing."""
    target_recall: float = Field(default=0.98, gt=0, le=1, strict=True)
    """recall@10 against exact search; an index below it is served, and said to be degraded."""
    quiet_hours: Annotated[QuietHours, BeforeValidator(_quiet_hours), PlainSerializer(str)] = QuietHours.parse(
        "01:00-05:00"
    )
    """When upkeep may load the databases, in UTC."""

    @model_validator(mode="before")
    @classmethod
    def _slots_know_their_names(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("models"), dict):
            return given
        models = {
            slot: {**model, "slot": slot} if isinstance(model, dict) and slot in SLOTS else model
            for slot, model in given["models"].items()
        }
        return {**given, "models": models}

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
