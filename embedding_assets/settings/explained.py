"""What pydantic finds wrong, in words for whoever wrote the file, and the line it stands on."""

from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from embedding_assets.errors import Problem
from embedding_assets.settings.fit import Misfit, one_of
from embedding_assets.settings.models import Settings, Source


def explained(details: ErrorDetails, given: dict[str, Any]) -> Misfit | None:
    """What pydantic found, in our words; None for what only follows from another problem."""
    path = [str(step) for step in details["loc"] if step != "[key]"]
    model = _model_at(path)
    if path[:1] == ["sources"] and path[2:3] and path[2] in _KINDS:
        del path[2]  # the union's tag
    if path[:1] == ["row_level_security"]:
        del path[1:2]  # the same
    loc, kind = tuple(path), details["type"]
    problem = details.get("ctx", {}).get("error")
    if isinstance(problem, Problem):
        return Misfit(loc, problem.what, problem.cure)
    if kind == "missing":
        if path[:1] == ["models"] and path[-1] not in ("provider", "name", "dimensions"):
            return None  # has a default once the provider is known
        return Misfit(loc, "is missing", f"add `{path[-1]}: …`")
    if kind == "extra_forbidden" and model is not None:
        known = [name for name in model.model_fields if name != "slot"]
        return Misfit(loc, "is not a setting", f"write {one_of(known, path[-1])}")
    if kind == "string_pattern_mismatch":
        reason = "not a name: names are partition keys and parts of paths"
        return Misfit(loc, reason, "take 1 to 48 of a-z, 0-9, _ and -, the first a letter or digit")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        kinds = " or ".join(f"`kind: {each}`" for each in _KINDS)
        return Misfit((*loc, "kind"), "is missing, or unknown", f"write {kinds}")
    if kind == "literal_error":
        return Misfit(loc, "is not known here", f"write {details['ctx']['expected']}")
    if details["loc"][-1:] == ("[key]",):
        return Misfit(loc, "the name is not a string", "put it in quotes")
    field = model.model_fields.get(path[-1]) if model is not None else None
    default = field.default if field is not None else None
    or_leave = f", or leave it out for the default, {default}" if isinstance(default, int | float | str) else ""
    return Misfit(loc, details["msg"].replace("Input should", "it should"), f"correct it{or_leave}")


def _model_at(path: list[str]) -> type[BaseModel] | None:
    """The model that the last step of an error's place is a field of, found by following the fields from the top."""
    choices: list[Any] = [Settings]
    for step in path[:-1]:
        choices = [below for choice in choices for below in _below(choice, step)]
    return next((choice for choice in choices if _is_model(choice)), None)


def _below(choice: Any, step: str) -> list[Any]:
    """What a type has at a step of a place: the field of a model, any entry of a mapping, the model of a tag."""
    if _is_model(choice):
        if step in choice.model_fields:
            return _choices(choice.model_fields[step].annotation)
        return [choice] if step == _tag(choice) else []
    return _choices(get_args(choice)[1]) if get_origin(choice) is dict else []


def _choices(annotation: Any) -> list[Any]:
    """The types that a value may have: those of a union, and what Annotated is about."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [choice for each in get_args(annotation) for choice in _choices(each)]
    return [annotation]


def _is_model(choice: Any) -> bool:
    return isinstance(choice, type) and issubclass(choice, BaseModel)


def _tag(model: type[BaseModel]) -> str | None:
    """What tells a model from the others of its union: its `kind`."""
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation)[0] if kind is not None else None


_KINDS: Final = tuple(filter(None, map(_tag, _choices(Source))))


def line_of(document: yaml.Node, loc: tuple[str, ...]) -> tuple[int, str]:
    """The line, and the dotted name, of a setting; the line of what it belongs to where it is not there itself."""
    node, line = document, document.start_mark.line + 1
    for step in loc:
        below: list[tuple[str, yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            below = [(key.value, key, value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            below = [(str(place), value, value) for place, value in enumerate(node.value)]
        child = next(((at, value) for name, at, value in below if name == step), None)
        if child is None:
            break
        line, node = child[0].start_mark.line + 1, child[1]
    return line, ".".join(loc) or "the settings"
