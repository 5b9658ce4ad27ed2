"""The settings: one YAML file and the environment, validated; every problem is named with its line and its cure."""

import difflib
import os
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import unquote

import psycopg
import yaml
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from embedding_assets.embedding.models import Binding, Hnsw
from embedding_assets.errors import PermanentError
from embedding_assets.pgvector.options import QuietHours
from embedding_assets.snapshots.slots import SLOTS, Slot
from embedding_assets.sources.reader import Reader, open_reader

CONFIG: Final = "EMBEDDING_ASSETS_CONFIG"
HOME: Final = "EMBEDDING_ASSETS_HOME"

MAX_DIMENSIONS: Final = 4_000
"""pgvector's HNSW index takes no more, as halfvec; more would fail only after everything was bought and loaded."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")]


class SettingsError(PermanentError):
    """The settings cannot be used; the message has a line for each problem."""


def _problem(what: str, cure: str) -> PydanticCustomError:
    return PydanticCustomError("settings", "{what}. Cure: {cure}.", {"what": what, "cure": cure})


class _Frozen(BaseModel):
    # An input may be a DSN with a password: no error repeats it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _store(url: str) -> str:
    if url.startswith("file:///") or re.fullmatch(r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[^/?#]+)*/?", url):
        return url.rstrip("/")
    raise _problem("not a store", "write file:///folder, file://./folder, s3://bucket/prefix or gs://bucket/prefix")


def _database(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if text != "embedded" and not re.fullmatch(r"env:[A-Za-z_]\w*", text) and not _is_dsn(text):
        raise _problem(
            "not a database",
            'write "embedded", postgresql://user@host:port/database, or env:NAME to take that from a variable',
        )
    return value


def _is_dsn(text: str) -> bool:
    try:
        conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        return False
    return text.startswith(("postgresql://", "postgres://"))


class Region(_Frozen):
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
        found = os.environ.get(name, "")
        if not _is_dsn(found):
            raise SettingsError(
                f"the database is {value}, and that variable {'holds no DSN' if found else 'is not set'}. "
                f"Cure: set {name} to postgresql://user@host:port/database."
            )
        return found


class Chunking(_Frozen):
    """How documents are cut. Tokens are cl100k_base."""

    max_tokens: int = Field(default=256, ge=16, le=8192, strict=True)
    overlap: int = Field(default=32, ge=0, strict=True, validate_default=True)

    @field_validator("overlap")
    @classmethod
    def _is_less_than_half(cls, overlap: int, info: ValidationInfo) -> int:
        max_tokens = info.data.get("max_tokens")
        if max_tokens is not None and 2 * overlap >= max_tokens:
            # A chunk would begin before the middle of the one before: some texts would be stored three times.
            raise _problem(
                f"{overlap} is not less than half of max_tokens, {max_tokens}",
                f"write overlap: {(max_tokens - 1) // 2} or less",
            )
        return overlap


def _pattern(pattern: str) -> str:
    if any(segment in ("", ".", "..") for segment in pattern.split("/")):
        raise _problem("not a pattern below the source's path", 'write one such as "**/*.md" or "guide/*.txt"')
    return pattern


class _Source(_Frozen):
    path: Path
    chunking: Chunking = Chunking()
    max_deleted: float = Field(default=0.2, ge=0, le=1, strict=True)
    """Share of the documents that may be gone at once without somebody allowing it."""
    max_rejected: float = Field(default=0.05, ge=0, le=1, strict=True)
    """Share of the documents, or chunks, that may be dead letters before their check fails instead of warning."""


class FilesSource(_Source):
    """A folder of text, Markdown, reStructuredText and HTML files."""

    kind: Literal["files"]
    include: Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], Field(min_length=1)] = (
        "**/*.md",
        "**/*.txt",
        "**/*.rst",
        "**/*.html",
    )

    def reader(self, name: str) -> Reader:
        """What reads the source's documents."""
        return open_reader(name, self)


class JsonlSource(_Source):
    """A .jsonl or .jsonl.gz file, or a glob of them: one document a line."""

    kind: Literal["jsonl"]
    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    metadata: tuple[str, ...] = ()

    def reader(self, name: str) -> Reader:
        """What reads the source's documents."""
        return open_reader(name, self)


Source = Annotated[FilesSource | JsonlSource, Field(discriminator="kind")]


class RunBudget(_Frozen):
    """What one run of an embeddings asset may use before it stops; the next run goes on where it stopped."""

    max_cost_usd: float | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, gt=0, strict=True)
    max_seconds: float | None = Field(default=None, gt=0)


class Hybrid(_Frozen):
    """Hybrid search: what an index on the words costs is measured in `pgvector/inverted.py`."""

    language: str = Field(min_length=1)
    """A text search configuration of the database, such as `english`, or `simple` for words as they are."""


def _quiet_hours(text: object) -> QuietHours:
    try:
        hours = QuietHours.parse(str(text))
    except ValueError:
        raise _problem("not hours of a day", 'write "01:00-05:00", in UTC, or "22:30-04:00" over midnight') from None
    if hours.minutes < 60:
        raise _problem(
            f"{hours.minutes} minutes are too short: upkeep is started on the hour, and might never be in them",
            "write an hour or more",
        )
    return hours


RoleName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[^\x00]*$")]


class Settings(_Frozen):
    """Sources, regions and models."""

    primary_region: Name
    regions: dict[Name, Region] = Field(min_length=1)
    models: dict[Slot, Binding]
    live_model: Slot
    run_budget: RunBudget = RunBudget()
    sources: dict[Name, Source] = Field(min_length=1)
    hybrid: Hybrid | None = None
    row_level_security: dict[RoleName, tuple[str, ...]] | None = None
    """The sources that each database role may read; None, and every role that may search reads all."""
    target_recall: float = Field(default=0.98, gt=0, le=1, strict=True)
    """recall@10 against exact search below which an index is not published."""
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
        for found in _misfits(_shallow(self)):
            # One is enough here: load_settings, which has the lines, looks for all of them by itself.
            raise PydanticCustomError(
                "misfit",
                "{where}: {what}. Cure: {cure}.",
                {"where": ".".join(found.loc), "what": found.what, "cure": found.cure},
            )
        return self


class _Misfit(NamedTuple):
    loc: tuple[str, ...]
    what: str
    cure: str


def _misfits(given: Mapping[str, Any]) -> Iterator[_Misfit]:
    """Parts of the settings that do not fit together; looks at invalid settings too, so that all are found at once."""
    regions, models = _shallow(given.get("regions")), _shallow(given.get("models"))
    for slot in SLOTS:
        if "models" in given and slot not in models:
            yield _Misfit(("models",), f"{slot} is missing", f"add `{slot}: {{provider: …, name: …, dimensions: …}}`")
        model = _shallow(models.get(slot))
        dimensions, key_env = model.get("dimensions"), model.get("api_key_env")
        if isinstance(dimensions, int) and dimensions > MAX_DIMENSIONS:
            yield _Misfit(
                ("models", slot, "dimensions"),
                f"{dimensions} is more than {MAX_DIMENSIONS}, the most that pgvector's HNSW index takes, as halfvec",
                "shorten the vectors (text-embedding-3-* do it by themselves), or take another model",
            )
        if isinstance(key_env, str) and not re.fullmatch(r"[A-Za-z_]\w*", key_env):
            yield _Misfit(
                ("models", slot, "api_key_env"),
                "not the name of an environment variable",
                "name the variable that holds the key; the key itself has no place here",
            )
    primary = given.get("primary_region")
    if regions and isinstance(primary, str) and primary not in regions:
        yield _Misfit(("primary_region",), f"there is no region {primary!r}", f"write {_one_of(regions, primary)}")
    sources = _shallow(given.get("sources"))
    for role, readable in _shallow(given.get("row_level_security")).items():
        for name in readable if isinstance(readable, list | tuple) else ():
            if isinstance(name, str) and name not in sources:
                yield _Misfit(
                    ("row_level_security", role), f"there is no source {name!r}", f"write {_one_of(sources, name)}"
                )

    stores: dict[Hashable, str] = {}
    databases: dict[Hashable, str] = {}
    for name, region in regions.items():
        about = _shallow(region)
        store, database = about.get("store"), about.get("database")
        if isinstance(store, str) and (first := stores.setdefault(store.rstrip("/"), name)) != name:
            yield _Misfit(("regions", name, "store"), f"{first} has the same store", "give each region its own")
        if isinstance(database, SecretStr):
            database = database.get_secret_value()
        if isinstance(database, str) and database != "embedded":
            first = databases.setdefault(_place(database), name)
            if first != name:
                where = ("regions", name, "database")
                yield _Misfit(where, f"{first} has the same database", "give each region its own")


def _shallow(value: object) -> dict[str, Any]:
    """A model's or a mapping's own entries; none for anything else."""
    if isinstance(value, BaseModel):
        return dict(value)
    return {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else {}


def _place(database: str) -> Hashable:
    """What two DSNs of one database have in common, whoever logs in."""
    if not _is_dsn(database):
        return database
    parts = conninfo_to_dict(database)
    return parts.get("hostaddr") or parts.get("host"), str(parts.get("port", 5432)), parts.get("dbname")


def home() -> Path:
    """The folder that everything local lies under: EMBEDDING_ASSETS_HOME, or .embedding_assets here."""
    given = os.environ.get(HOME)
    return Path(given).expanduser().absolute() if given else Path.cwd() / ".embedding_assets"


def current_settings() -> Settings:
    """The settings that EMBEDDING_ASSETS_CONFIG names, or the demo's."""
    given = os.environ.get(CONFIG)
    return load_settings(Path(given)) if given else default_settings(home())


def default_settings(home: Path) -> Settings:
    """The demo: two sources written by `demo_input`, two regions, two bundled models; no file, key or network."""
    return Settings.model_validate(
        {
            "primary_region": "us-east-1",
            "regions": {
                region: {"store": (home / "stores" / region).absolute().as_uri(), "database": "embedded"}
                for region in ("us-east-1", "eu-west-1")
            },
            "models": {
                "v1": {"provider": "local", "name": "wordllama-256", "dimensions": 256},
                "v2": {"provider": "local", "name": "minilm-l6-384", "dimensions": 384},
            },
            "live_model": "v1",
            "sources": {
                "reference": {"kind": "files", "path": home / "input" / "reference", "include": ["**/*.rst"]},
                "packages": {
                    "kind": "jsonl",
                    "path": home / "input" / "packages.jsonl",
                    "id": "name",
                    "text": "description",
                    "metadata": ["version", "summary", "license"],
                },
            },
        }
    )


def load_settings(path: Path) -> Settings:
    """The settings in a YAML file. Paths and `file://./…` stores are relative to the file's folder.

    Raises:
        SettingsError: lists every problem as `file:line: where: what. Cure: …`.
    """
    document, given = _parsed(path)
    located = _located(given, path.absolute().parent)
    settings, found = None, []
    try:
        settings = Settings.model_validate(located)
    except ValidationError as error:
        found = [_explained(details, located) for details in error.errors() if details["type"] != "misfit"]
    problems = {
        (line, f"{path}:{line}: {where}: {misfit.what}. Cure: {misfit.cure}.")
        for misfit in (*filter(None, found), *_misfits(located))
        for line, where in [_line_of(document, misfit.loc)]
    }
    if problems or settings is None:
        raise SettingsError("\n".join(text for _, text in sorted(problems)))
    return settings


def _parsed(path: Path) -> tuple[yaml.MappingNode, dict[str, Any]]:
    """The file as nodes, which know their lines, and as values."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(
            f"{path}: the settings cannot be read: {reason}. Cure: name a readable YAML file in {CONFIG}."
        ) from None
    try:
        document = yaml.compose(text, yaml.SafeLoader)
        doubled = [] if document is None else list(_doubled(document))
        given = yaml.safe_load(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SettingsError(f"{path}:{line}: not YAML: {error.reason}. Cure: remove the character.") from None
    except yaml.MarkedYAMLError as error:
        # Not its own text, which quotes the line: there may be a password in it.
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise SettingsError(f"{place}: not YAML: {error.problem}. Cure: correct the line, or quote it.") from None
    except ValueError as error:
        raise SettingsError(f"{path}: not YAML: {error}. Cure: quote the value.") from None
    if not isinstance(document, yaml.MappingNode):
        raise SettingsError(f"{path}:1: the settings are no mapping. Cure: begin with `primary_region: …`.")
    if doubled:
        raise SettingsError("\n".join(f"{path}:{line}: {key}: stands twice. Cure: keep one." for key, line in doubled))
    return document, given


def _doubled(document: yaml.Node) -> Iterator[tuple[str, int]]:
    """(key, line) of every key that its mapping has already; YAML itself would let the last one win."""
    seen: set[yaml.Node] = set()  # an alias leads to its anchor's node again, perhaps from inside
    below = [document]
    while below:
        node = below.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        yield key.value, key.start_mark.line + 1
                    keys.add(key.value)
                below.append(value)
        elif isinstance(node, yaml.SequenceNode):
            below.extend(node.value)


def _located(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with relative paths and stores made absolute."""
    located = dict(given)
    for part, key, place in (("sources", "path", _absolute_path), ("regions", "store", _absolute_store)):
        if isinstance(given.get(part), dict):
            located[part] = {
                name: {**entry, key: place(entry[key], folder)}
                if isinstance(entry, dict) and isinstance(entry.get(key), str)
                else entry
                for name, entry in given[part].items()
            }
    return located


def _absolute_path(path: str, folder: Path) -> str:
    return os.path.normpath(folder / path)


def _absolute_store(store: str, folder: Path) -> str:
    path = unquote(store.removeprefix("file://"))
    if not store.startswith("file://") or not path.startswith(("/", "./", "../")):
        return store
    return Path(_absolute_path(path, folder)).as_uri()


def _explained(details: ErrorDetails, given: dict[str, Any]) -> _Misfit | None:
    """What pydantic found, in our words; None for what only follows from another problem."""
    path = [str(step) for step in details["loc"] if step != "[key]"]
    model = _model_at(path)
    if path[:1] == ["sources"] and path[2:3] and path[2] in ("files", "jsonl"):
        del path[2]  # the union's tag
    loc, kind = tuple(path), details["type"]
    if kind == "settings":
        return _Misfit(loc, details["ctx"]["what"], details["ctx"]["cure"])
    if kind == "missing":
        if path[:1] == ["models"] and path[-1] not in ("provider", "name", "dimensions"):
            return None  # has a default once the provider is known
        return _Misfit(loc, "is missing", f"add `{path[-1]}: …`")
    if kind == "extra_forbidden" and model is not None:
        known = [name for name in model.model_fields if name != "slot"]
        return _Misfit(loc, "is not a setting", f"write {_one_of(known, path[-1])}")
    if kind == "string_pattern_mismatch":
        reason = "not a name: names are partition keys and parts of paths"
        return _Misfit(loc, reason, "take 1 to 48 of a-z, 0-9, _ and -, the first a letter or digit")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _Misfit((*loc, "kind"), "is missing, or unknown", "write `kind: files` or `kind: jsonl`")
    if kind == "literal_error":
        return _Misfit(loc, "is not known here", f"write {details['ctx']['expected']}")
    if kind == "value_error":
        what, _, cure = details["msg"].removeprefix("Value error, ").partition(". ")
        return _Misfit(loc, what.rstrip("."), cure.rstrip(".") or "correct one of the two")
    if details["loc"][-1:] == ("[key]",):
        return _Misfit(loc, "the name is not a string", "put it in quotes")
    field = model.model_fields.get(path[-1]) if model is not None else None
    default = field.default if field is not None else None
    or_leave = f", or leave it out for the default, {default}" if isinstance(default, int | float | str) else ""
    return _Misfit(loc, details["msg"].replace("Input should", "it should"), f"correct it{or_leave}")


def _model_at(path: list[str]) -> type[BaseModel] | None:
    """The model that the last step of an error's place is a field of."""
    match path[:-1]:
        case []:
            return Settings
        case ["regions", _]:
            return Region
        case ["models", _]:
            return Binding
        case ["models", _, "hnsw"]:
            return Hnsw
        case ["run_budget"]:
            return RunBudget
        case ["hybrid"]:
            return Hybrid
        case ["sources", _, "files"]:
            return FilesSource
        case ["sources", _, "jsonl"]:
            return JsonlSource
        case ["sources", _, _, "chunking"]:
            return Chunking
        case _:
            return None


def _one_of(known: Mapping[str, object] | list[str], given: str) -> str:
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"{close[0]} (perhaps that was meant)" if close else f"one of {', '.join(known)}"


def _line_of(document: yaml.Node, loc: tuple[str, ...]) -> tuple[int, str]:
    """The line, and the dotted name, of a setting; the line of what it belongs to where it is not there itself."""
    node, line = document, document.start_mark.line + 1
    for step in loc:
        below: list[tuple[str, yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            below = [(key.value, key, value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            below = [(str(place), value, value) for place, value in enumerate(node.value)]
        found = next(((at, value) for name, at, value in below if name == step), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line, ".".join(loc) or "the settings"
