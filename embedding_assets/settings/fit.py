"""Whether the parts of the settings fit together."""

import difflib
import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    BaseModel,
    SecretStr,
)

from embedding_assets.pgvector.options import LARGEST_HALFVEC
from embedding_assets.snapshots.slots import SLOTS


def is_dsn(text: str) -> bool:
    try:
        conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        return False
    return text.startswith(("postgresql://", "postgres://"))


class Misfit(NamedTuple):
    loc: tuple[str, ...]
    what: str
    cure: str


def misfits(given: Mapping[str, Any]) -> Iterator[Misfit]:
    """Parts of the settings that do not fit together; looks at invalid settings too, so that all are found at once."""
    regions, models = shallow(given.get("regions")), shallow(given.get("models"))
    live = given.get("live_model")
    if not models and isinstance(given.get("models"), dict):
        cure = f"add `{SLOTS[0]}: {{provider: …, name: …, dimensions: …}}`"
        yield Misfit(("models",), "no model is bound", cure)
    elif models and live in SLOTS and live not in models:
        cure = f"write {one_of(models, live)}, or bind a model to {live}"
        yield Misfit(("live_model",), f"slot {live} is empty", cure)
    for slot in SLOTS:
        model = shallow(models.get(slot))
        dimensions, key_env = model.get("dimensions"), model.get("api_key_env")
        # More would fail only after everything was bought and loaded.
        if isinstance(dimensions, int) and dimensions > LARGEST_HALFVEC:
            yield Misfit(
                ("models", slot, "dimensions"),
                f"{dimensions} is more than {LARGEST_HALFVEC}, the most that pgvector's HNSW index takes, as halfvec",
                "shorten the vectors (text-embedding-3-* do it by themselves), or take another model",
            )
        if isinstance(key_env, str) and not re.fullmatch(r"[A-Za-z_]\w*", key_env):
            yield Misfit(
                ("models", slot, "api_key_env"),
                "not the name of an environment variable",
                "name the variable that holds the key; the key itself has no place here",
            )
    primary = given.get("primary_region")
    if regions and isinstance(primary, str) and primary not in regions:
        yield Misfit(("primary_region",), f"there is no region {primary!r}", f"write {one_of(regions, primary)}")
    sources = shallow(given.get("sources"))
    renamed: dict[str, str] = {}
    for name, source in sources.items():
        old = shallow(source).get("renamed_from")
        where = ("sources", name, "renamed_from")
        if not isinstance(old, str):
            continue
        if old in sources:
            yield Misfit(where, f"source {old} is still here", f"remove {old}, or this line")
        if (first := renamed.setdefault(old, name)) != name:
            yield Misfit(where, f"{first} was renamed from {old} as well", "keep one")
    for role, readable in shallow(given.get("row_level_security")).items():
        for name in readable if isinstance(readable, list | tuple) else ():
            if isinstance(name, str) and name not in sources:
                yield Misfit(
                    ("row_level_security", role), f"there is no source {name!r}", f"write {one_of(sources, name)}"
                )

    stores: dict[Hashable, str] = {}
    databases: dict[Hashable, str] = {}
    for name, region in regions.items():
        about = shallow(region)
        store, database = about.get("store"), about.get("database")
        if isinstance(store, str) and (first := stores.setdefault(store.rstrip("/"), name)) != name:
            yield Misfit(("regions", name, "store"), f"{first} has the same store", "give each region its own")
        if isinstance(database, SecretStr):
            database = database.get_secret_value()
        if isinstance(database, str) and database != "embedded":
            first = databases.setdefault(_place(database), name)
            if first != name:
                where = ("regions", name, "database")
                yield Misfit(where, f"{first} has the same database", "give each region its own")


def shallow(value: object) -> dict[str, Any]:
    """A model's or a mapping's own entries; none for anything else."""
    if isinstance(value, BaseModel):
        return dict(value)
    return {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else {}


def _place(database: str) -> Hashable:
    """What two DSNs of one database have in common, whoever logs in."""
    if not is_dsn(database):
        return database
    parts = conninfo_to_dict(database)
    return parts.get("hostaddr") or parts.get("host"), str(parts.get("port", 5432)), parts.get("dbname")


def one_of(known: Mapping[str, object] | list[str], word: str) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"{close[0]} (perhaps that was meant)" if close else f"one of {', '.join(known)}"
