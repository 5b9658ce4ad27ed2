"""How an endpoint names a model in its answers, beside how it is asked for: which names are of one model.

An endpoint may name its model as it likes (a deployment, an alias, a path); that it names another one later means that
it serves another.
"""

import re
from typing import Final

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
