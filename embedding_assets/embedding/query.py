"""The vectors of questions, by the model that the documents were embedded with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedding_assets.embedding.engine.engine import Dead, Embedded, Text, embed
from embedding_assets.embedding.options import Binding
from embedding_assets.errors import PermanentError


def embed_query(binding: Binding, question: str) -> NDArray[np.float32]:
    """The unit vector of a question, (d,) float32. Raises as the engine does, and PermanentError if it is refused."""
    vector: NDArray[np.float32] = embed_questions(binding, [question])[0]
    return vector


def embed_questions(binding: Binding, questions: Sequence[str]) -> NDArray[np.float32]:
    """The unit vectors of questions, (n, d) float32. Raises as `embed_query` does, at the first that is refused."""
    if not all(question.strip() for question in questions):
        raise PermanentError("the question is empty. Cure: give some text to search for.")
    vectors = np.zeros((len(questions), binding.dimensions), np.float32)

    def place(answer: Embedded | Dead) -> None:
        if isinstance(answer, Dead):
            raise PermanentError(
                f"{binding.name} refused the question: {answer.reason}. Cure: ask in other words, or in fewer."
            )
        vectors[[int.from_bytes(number) for number in answer.text_hashes]] = answer.vectors

    # Its tokens only pace the request: a byte a token is the upper bound.
    texts = [Text(n.to_bytes(8), question, len(question.encode())) for n, question in enumerate(questions)]
    embed(binding, texts, place)
    return vectors
