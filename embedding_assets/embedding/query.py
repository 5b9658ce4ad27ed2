"""The vector of a question, by the model that the documents were embedded with."""

import numpy as np
from numpy.typing import NDArray

from embedding_assets.embedding.engine.engine import Dead, Embedded, Text, embed
from embedding_assets.embedding.options import Binding
from embedding_assets.errors import PermanentError


def embed_query(binding: Binding, question: str) -> NDArray[np.float32]:
    """The unit vector of a question, (d,) float32. Raises as the engine does, and PermanentError if it is refused."""
    if not question.strip():
        raise PermanentError("the question is empty. Cure: give some text to search for.")
    answers: list[Embedded | Dead] = []
    # Its tokens only pace the request: a byte a token is the upper bound.
    embed(binding, [Text(b"question", question, len(question.encode()))], answers.append)
    answer = answers[0]
    if isinstance(answer, Dead):
        raise PermanentError(
            f"{binding.name} refused the question: {answer.reason}. Cure: ask in other words, or in fewer."
        )
    vector: NDArray[np.float32] = answer.vectors[0]
    return vector
