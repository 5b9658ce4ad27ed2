"""A search as a sequence of steps, without I/O: both clients drive the same one.

A search is a generator. It yields what has to be done, is sent what came of it, or has the error thrown into it, and
returns its hits. So what is asked, in which order, and what an error means stands here once.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, LiteralString, NamedTuple, TypeVar
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict, ValidationError

from embedding_assets.client.failures import explained, may_pass
from embedding_assets.embedding.engine.vectors import normalise
from embedding_assets.embedding.options import Endpoint
from embedding_assets.errors import PermanentError, PipelineError, TransientError
from embedding_assets.snapshots.slots import Slot

MOST: Final = 10_000
"""Hits that a search may ask for; `search()` in the database has the same bound."""

_ATTEMPTS: Final = 4

_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")

_LIVE: Final = "SELECT * FROM public.live_model()"
# In the order in which the function returns them. Vectors go as text, which needs no type of pgvector's.
_SEARCH: Final = """
    SELECT * FROM public.search(
        %(vector)s::text, %(k)s::integer, %(source)s::text, %(filter)s::jsonb, %(model)s::text
    ) WITH ORDINALITY ORDER BY ordinality
"""
_HYBRID: Final = """
    SELECT * FROM public.search_hybrid(
        %(vector)s::text, %(question)s::text, %(k)s::integer, %(source)s::text, %(filter)s::jsonb, %(model)s::text
    ) WITH ORDINALITY ORDER BY ordinality
"""
_TIMEOUT: Final = "SELECT set_config('statement_timeout', %(milliseconds)s::text, true)"

Vector = npt.NDArray[np.float32]
Statement = tuple[LiteralString, Mapping[str, Any]]
Rows = list[dict[str, Any]]


class LiveModel(BaseModel):
    """The model that questions have to be embedded with, as `live_model()` in the database tells it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    dimensions: int
    provider: str
    slot: Slot
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk found."""

    source: str
    document_id: str
    ordinal: int
    """Its place among the document's chunks, from 0."""
    chunk_id: UUID
    text: str
    metadata: Mapping[str, Any]
    distance: float
    """Cosine distance to the question: 0 the same direction, 2 the opposite."""
    score: float
    """The higher the better: 1 − distance of `search`, what `search_hybrid()` ranks by of `hybrid`."""


class Run(NamedTuple):
    """A step: run these statements in one transaction. Sent back are the rows of each, by the names of columns."""

    statements: Sequence[Statement]


class Embed(NamedTuple):
    """A step: embed the question with the model. Sent back is its vector, (d,), of any length."""

    question: str
    model: LiveModel


T = TypeVar("T")
Steps = Generator[Run | Embed, Any, T]


class Asked(NamedTuple):
    """A question as a client was asked it."""

    question: str
    k: int
    source: str | None
    filter: Mapping[str, Any] | None
    hybrid: bool


class Memory:
    """What a client remembers: the live model, and the vectors of the last questions by the model that made them.

    Its threads share it.
    """

    def __init__(self, questions: int) -> None:
        self.live: LiveModel | None = None
        self._most = questions
        self._lock = Lock()
        self._vectors: OrderedDict[tuple[LiveModel, str], Vector] = OrderedDict()

    def vector(self, model: LiveModel, question: str) -> Vector | None:
        with self._lock:
            vector = self._vectors.get((model, question))
            if vector is not None:
                self._vectors.move_to_end((model, question))
            return vector

    def keep(self, model: LiveModel, question: str, vector: Vector) -> None:
        with self._lock:
            self._vectors[model, question] = vector
            while len(self._vectors) > self._most:
                self._vectors.popitem(last=False)


class Deadline:
    """When a call has to have its answer."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then. Raises TransientError where none are left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TransientError(f"no answer within {self.seconds:g} s. Cure: ask again, or raise timeout")
        return left

    def limit(self) -> Statement:
        """Has Postgres end the statements of this transaction by then, and no others: the session may be a pooler's."""
        return _TIMEOUT, {"milliseconds": str(max(1, int(self.left() * 1000)))}


def searching(asked: Asked, memory: Memory) -> Steps[list[Hit]]:
    """The steps of a search.

    The search names the model that the question was embedded with, and the database refuses it where another one is
    live: then it is asked which, and the question is embedded anew.

    Raises PermanentError for a question, k or filter that cannot be, and TransientError where the database does not
    answer.
    """
    _check(asked)
    live = memory.live or (yield from asking(memory))
    for _ in range(_ATTEMPTS):
        vector = memory.vector(live, asked.question)
        if vector is None:
            vector = unit((yield Embed(asked.question, live)), live)
            memory.keep(live, asked.question, vector)
        try:
            (rows,) = yield Run((_statement(asked, vector, live),))
            return [_hit(row) for row in rows]
        except psycopg.errors.InvalidParameterValue as error:  # is another model live by now?
            embedded_by, live = live, (yield from asking(memory))
            failed = explained(error) if embedded_by == live else _switched()
        except psycopg.Error as error:
            failed = explained(error)
            if not may_pass(error):
                raise failed from error
            # A search changes nothing: it may be asked twice.
    raise failed


def _switched() -> PipelineError:
    return TransientError(f"the live model changed {_ATTEMPTS} times during one search. Cure: ask again")


def asking(memory: Memory) -> Steps[LiveModel]:
    """The step that asks which model is live."""
    for attempt in range(_ATTEMPTS):
        try:
            ((row,),) = yield Run(((_LIVE, {}),))
        except psycopg.Error as error:
            if may_pass(error) and attempt + 1 < _ATTEMPTS:
                continue
            raise explained(error) from error
        memory.live = _model(row)
        return memory.live
    raise AssertionError("the last attempt returns or raises")


def unit(values: npt.ArrayLike, model: LiveModel) -> Vector:
    """The vector that was given for a question, (d,) float32, of length 1. Raises PermanentError if it can be none."""
    vector = np.array(values, np.float32)
    if vector.shape != (model.dimensions,):
        raise PermanentError(
            f"the question's vector has the shape {vector.shape}, the live model {model.name} has {model.dimensions} "
            "dimensions. Cure: embed it with that model"
        )
    if not normalise(vector[np.newaxis])[0]:
        raise PermanentError(
            f"{model.name} has no vector for this question: it is zero, or not finite. Cure: ask in other words"
        )
    return vector


def _check(asked: Asked) -> None:
    if not isinstance(asked.question, str) or not asked.question.strip():
        raise PermanentError("the question is empty. Cure: give some text to search for")
    if _NO_TEXT.search(asked.question):
        raise PermanentError("the question has characters that no text has. Cure: leave out NUL and lone surrogates")
    if isinstance(asked.k, bool) or not isinstance(asked.k, int) or not 1 <= asked.k <= MOST:
        raise PermanentError(
            f"k is {asked.k!r}. Cure: ask for 1 to {MOST:,} hits; to read more rows, use the view live_chunks"
        )
    if asked.filter is not None and not isinstance(asked.filter, Mapping):
        raise PermanentError(
            "the filter is not a mapping. Cure: give the fields that metadata have to contain, as a dict"
        )


def _statement(asked: Asked, vector: Vector, model: LiveModel) -> Statement:
    parameters = {
        # Nine digits tell any two float32 apart.
        "vector": "[" + ",".join([f"{value:.9g}" for value in vector.tolist()]) + "]",
        "k": asked.k,
        "source": asked.source,
        "filter": Jsonb(dict(asked.filter or {})),
        "question": asked.question,
        "model": model.name,
    }
    return (_HYBRID if asked.hybrid else _SEARCH), parameters


def _model(row: Mapping[str, Any]) -> LiveModel:
    try:
        return LiveModel.model_validate(row)
    except ValidationError as error:
        raise PermanentError(
            f"what the database says of its live model is not understood: {error.error_count()} fields. Cure: install "
            "the version of embedding-assets that fills this database"
        ) from error


def _hit(row: Mapping[str, Any]) -> Hit:
    """By the names of columns: later versions of the database append others."""
    return Hit(
        source=row["source"],
        document_id=row["document_id"],
        ordinal=row["ordinal"],
        chunk_id=row["chunk_id"],
        text=row["content"],
        metadata=row["metadata"],
        distance=row["distance"],
        score=row.get("score", 1.0 - row["distance"]),
    )
