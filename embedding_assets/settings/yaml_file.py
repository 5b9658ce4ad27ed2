"""A settings file read: relative places made absolute, every problem named with its line and its cure."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import yaml
from pydantic import (
    ValidationError,
)

from embedding_assets.settings.explained import explained, line_of
from embedding_assets.settings.fit import misfits
from embedding_assets.settings.home import CONFIG
from embedding_assets.settings.models import Settings, SettingsError

_LARGEST: Final = 1 << 20
"""Bytes of a settings file; parsing one takes seconds."""


def load_settings(path: Path) -> Settings:
    """The settings in a YAML file. Paths and `file://./…` stores are relative to the file's folder.

    Raises:
        SettingsError: lists every problem as `file:line: where: what. Cure: …`.
    """
    document, values = _parsed(path)
    located = _located(values, path.absolute().parent)
    settings, explanations = None, []
    try:
        settings = Settings.model_validate(located)
    except ValidationError as error:
        explanations = [explained(details, located) for details in error.errors() if details["type"] != "misfit"]
    problems = {
        (line, f"{path}:{line}: {where}: {misfit.what}. Cure: {misfit.cure}.")
        for misfit in (*filter(None, explanations), *misfits(located))
        for line, where in [line_of(document, misfit.loc)]
    }
    if problems or settings is None:
        raise SettingsError("\n".join(text for _, text in sorted(problems)))
    return settings


def _parsed(path: Path) -> tuple[yaml.MappingNode, dict[str, Any]]:
    """The file as nodes, which know their lines, and as values."""
    text = _text(path)
    try:
        document = yaml.compose(text, yaml.SafeLoader)
        doubled = [] if document is None else list(_doubled(document))
        values = yaml.safe_load(text)
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
    except RecursionError:
        raise SettingsError(f"{path}: its brackets are nested too deep. Cure: close them; settings need few.") from None
    if not isinstance(document, yaml.MappingNode):
        raise SettingsError(f"{path}:1: the settings are no mapping. Cure: begin with `primary_region: …`.")
    if doubled:
        raise SettingsError("\n".join(f"{path}:{line}: {key}: stands twice. Cure: keep one." for key, line in doubled))
    return document, values


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise SettingsError(
                f"{path}: over {_LARGEST:,} bytes are no settings. Cure: name the right file in {CONFIG}."
            )
        return data.decode()
    except OSError as error:
        raise SettingsError(
            f"{path}: the settings cannot be read: {error.strerror}. Cure: name a readable YAML file in {CONFIG}."
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: the settings cannot be read: it is not UTF-8. Cure: save it as UTF-8.") from None


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


def _located(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with relative paths and stores made absolute."""
    located = dict(values)
    places = (
        ("sources", "path", _absolute_path),
        ("sources", "questions", _absolute_path),
        ("regions", "store", _absolute_store),
    )
    for part, key, place in places:
        if isinstance(values.get(part), dict):
            located[part] = {
                name: {**entry, key: place(entry[key], folder)}
                if isinstance(entry, dict) and isinstance(entry.get(key), str)
                else entry
                for name, entry in located[part].items()
            }
    return located


def _absolute_path(path: str, folder: Path) -> str:
    return os.path.normpath(folder / path)


def _absolute_store(store: str, folder: Path) -> str:
    path = unquote(store.removeprefix("file://"))
    if not store.startswith("file://") or not path.startswith(("/", "./", "../")):
        return store
    return Path(_absolute_path(path, folder)).as_uri()
