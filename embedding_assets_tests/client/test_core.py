"""The steps of a search, without any I/O: what they lead to, whatever happens between them."""

import uuid
from collections.abc import Mapping
from typing import Any, Final

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.client.core import Asked, Embed, Hit, LiveModel, Memory, Run, searching
from embedding_assets.errors import PipelineError

ASKED: Final = Asked("a question", 1, None, None, hybrid=False)
LOST: Final = "the session is lost"
SWITCH: Final = "another model becomes live"
NOTHING: Final = "nothing"


class World:
    """A database and its two models. At each step the next line of a script happens; at its end nothing does."""

    def __init__(self, script: list[str], other_dimensions: int) -> None:
        self.models = (
            LiveModel(name="first", dimensions=2, provider="test", slot="v1"),
            LiveModel(name="second", dimensions=other_dimensions, provider="test", slot="v2"),
        )
        self.live = self.models[0]
        self._script = iter(script)

    def search(self, memory: Memory) -> list[Hit]:
        steps = searching(ASKED, memory)
        try:
            step = next(steps)
            while True:
                try:
                    done: object = self._vector(step) if isinstance(step, Embed) else self._rows(step)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            hits: list[Hit] = end.value
            return hits

    def rest(self) -> None:
        """Nothing happens from here on."""
        self._script = iter([])

    def _switch(self) -> None:
        self.live = self.models[1 - self.models.index(self.live)]

    def _vector(self, step: Embed) -> list[float]:
        """One that tells its model: along the first axis, or the second."""
        if next(self._script, NOTHING) == SWITCH:
            self._switch()
        return [float(axis == self.models.index(step.model)) for axis in range(step.model.dimensions)]

    def _rows(self, step: Run) -> list[list[dict[str, Any]]]:
        event = next(self._script, NOTHING)
        if event == LOST:
            raise psycopg.OperationalError("the connection is lost")
        found = []
        if event == SWITCH:
            self._switch()
        for _, parameters in step.statements:
            found.append([self._hit(parameters) if "vector" in parameters else self.live.model_dump()])
        return found

    def _hit(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """One row, whose text says by which model's vector the rows of which model were searched."""
        if parameters["model"] != self.live.name:
            raise psycopg.errors.InvalidParameterValue("the query was embedded with another model")
        numbers = [float(number) for number in parameters["vector"].strip("[]").split(",")]
        if len(numbers) != self.live.dimensions:
            raise psycopg.errors.InvalidParameterValue("the query has other dimensions")
        asked_by = self.models[numbers.index(1.0)]
        text = f"{asked_by.name} in {self.live.name}"
        place = {"source": "s", "document_id": "d", "ordinal": 0, "chunk_id": uuid.UUID(int=0)}
        return {**place, "content": text, "metadata": {}, "distance": 0.0, "a column of a later version": 1}


@given(
    st.lists(st.sampled_from([NOTHING, LOST, SWITCH]), max_size=14),
    st.sampled_from([2, 3]),
    st.integers(1, 3),
)
def test_hits_are_rows_of_the_model_that_embedded_the_question_whatever_happens_meanwhile(
    script: list[str], other_dimensions: int, searches: int
) -> None:
    world, memory = World(script, other_dimensions), Memory(4)
    for _ in range(searches):
        try:
            (hit,) = world.search(memory)
        except PipelineError:
            assert len(script) >= 4  # it was tried four times
        else:
            assert hit.text in ("first in first", "second in second")

    world.rest()
    (hit,) = world.search(memory)
    assert hit.text == f"{world.live.name} in {world.live.name}"
