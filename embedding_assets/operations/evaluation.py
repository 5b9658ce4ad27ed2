"""How well a region's searches find, each way to search on its own: by questions whose answers are known."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from embedding_assets.embedding.query import embed_questions
from embedding_assets.errors import PermanentError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.regions import searched_slot
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.reading.search import (
    fusion_weight,
    ranked_documents,
    ranked_documents_hybrid,
    ranked_documents_words,
    sampled_chunks,
    set_fusion_weight,
)
from embedding_assets.pgvector.reading.search import known_documents as known_in
from embedding_assets.pgvector.schema.models import BoundModel, bound_models
from embedding_assets.snapshots.slots import SLOTS, Slot

DEPTH: Final = 10
"""Documents of a ranking that count."""

_CHUNKS: Final = 100
"""Read of each ranking, so that ten documents are among them where each has several chunks."""

_WORDS: Final = 10
"""Of a question that is made here: as long as people's are, and found in one text alone."""

WEIGHTS: Final = tuple(tenth / 10 for tenth in range(11))
"""Of the vector in hybrid search, tried when one is chosen: from the words alone to the vector alone."""

_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 0.95
_SEED: Final = 20


class Question(BaseModel):
    """A question, and how much each document is worth as its answer: the gain, over 0. Others are worth nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    relevant: Annotated[dict[str, Annotated[int, Field(gt=0, le=1000)]], Field(min_length=1)]


class Score(BaseModel):
    """A mean over all questions, with its bootstrap interval of 95 %; no interval where one question has none."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float | None
    high: float | None


class Way(BaseModel):
    """What one way to search found. `against_live` is its nDCG@10 less that of the live model's vectors, question by
    question, `against_words` less that of the words: a way is better or worse where the interval leaves out 0.
    `overlap_at_10` is the share of its first ten documents that are among the live model's, from 0 to 1."""

    model_config = ConfigDict(frozen=True)

    way: str
    model: str
    live: bool
    ndcg_at_10: Score
    mrr: Score
    recall_at_10: Score
    against_live: Score | None
    against_words: Score | None
    overlap_at_10: float
    p50_ms: float


class Evaluation(BaseModel):
    """`unknown` are the documents that the questions name and the region does not serve; `weight` is that of the vector
    in hybrid search, where one was chosen for the source and the live model."""

    model_config = ConfigDict(frozen=True)

    region: str
    source: str
    questions: int
    self_made: bool
    unknown: tuple[str, ...]
    weight: float | None
    ways: tuple[Way, ...]


class _Ranking(NamedTuple):
    """Documents by question, the best first, and the seconds that each took."""

    documents: list[list[str]]
    seconds: list[float]


def read_questions(file: Path) -> list[Question]:
    """Labelled questions of a JSONL file. Raises PermanentError, with the line, where one is none."""
    questions = []
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError(f"{file} can't be read: {error}. Cure: name a JSONL file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                questions.append(Question.model_validate_json(line))
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                place = ".".join(str(part) for part in first["loc"])
                raise PermanentError(
                    f"{file}, line {number}: {f'{place}: ' if place else ''}{first['msg']}. Cure: a line is an object "
                    'such as {"query": "how do refunds work", "relevant": {"billing/refunds.md": 1}}'
                ) from error
    if not questions:
        raise PermanentError(f"{file} has no question. Cure: write one a line")
    return questions


def made_questions(conn: Connection, source: str, count: int) -> list[Question]:
    """Questions made of the source itself: some words in a row from the middle of a chunk, whose document is sought.

    Known-item queries: they say how two ways compare, not how well people are answered. The same as long as the rows
    are.
    """
    made = []
    for text, documents in sampled_chunks(conn, source, count):
        words = text.split()
        start = max(0, (len(words) - _WORDS) // 2)
        if words:
            made.append(Question(query=" ".join(words[start : start + _WORDS]), relevant=dict.fromkeys(documents, 1)))
    if not made:
        raise PermanentError(f"source {source!r} has no chunk in this region. Cure: embedding-assets materialize")
    return made


def evaluate(
    deployment: Deployment,
    region: str,
    source: str,
    questions: Sequence[Question] | None,
    made: int,
    *,
    choose: bool = False,
) -> Evaluation:
    """Ask a region every question in every way that it can be asked, and score what comes.

    Each slot's vectors, live or not, and the words and hybrid search where that is enabled. Without `questions` so many
    are made of the source. `choose` records the weight with which hybrid search answers them best, for the source and
    the live model. Raises PermanentError where the region serves nothing or has no hybrid search to choose a weight
    for, and as embedding the questions does.
    """
    if choose and deployment.settings.hybrid is None:
        raise PermanentError(
            "hybrid search is not enabled, so there is no weight to choose. Cure: add hybrid: {language: english} to "
            "the settings, then embedding-assets materialize"
        )
    with deployment.connect(region) as conn, pipeline_errors(f"evaluating region {region}"):
        live, models = searched_slot(conn, region), bound_models(conn)
        asked = list(questions) if questions is not None else made_questions(conn, source, made)
        named = sorted({document for question in asked for document in question.relevant})
        unknown = set(named) - known_in(conn, source, named)
        vectors = {
            slot: embed_questions(deployment.binding(slot), [question.query for question in asked])
            for slot in SLOTS
            if slot in models and slot in deployment.settings.models
        }
        if choose:
            _choose_weight(conn, source, asked, vectors[live], models[live].model.name)
        rankings = _rankings(conn, deployment, source, asked, models, vectors, live)
        weight = fusion_weight(conn, source, models[live].model.name)
    return Evaluation(
        region=region,
        source=source,
        questions=len(asked),
        self_made=questions is None,
        unknown=tuple(sorted(unknown)),
        weight=weight,
        ways=tuple(_scored(asked, rankings, models, live)),
    )


def _rankings(
    conn: Connection,
    deployment: Deployment,
    source: str,
    asked: Sequence[Question],
    models: Mapping[Slot, BoundModel],
    vectors: Mapping[Slot, npt.NDArray[np.float32]],
    live: Slot,
) -> dict[str, _Ranking]:
    rankings: dict[str, _Ranking] = {}
    for slot, of_slot in vectors.items():

        def nearest(place: int, of_slot: npt.NDArray[np.float32] = of_slot, slot: Slot = slot) -> list[str]:
            return ranked_documents(conn, models[slot], of_slot[place], _CHUNKS, source)

        rankings[slot] = _ask(nearest, len(asked))
    if deployment.settings.hybrid is not None:

        def by_words(place: int) -> list[str]:
            return ranked_documents_words(conn, asked[place].query, _CHUNKS, source)

        def fused(place: int) -> list[str]:
            return ranked_documents_hybrid(conn, vectors[live][place], asked[place].query, _CHUNKS, source)

        rankings["words"] = _ask(by_words, len(asked))
        rankings["hybrid"] = _ask(fused, len(asked))
    return rankings


def _choose_weight(
    conn: Connection, source: str, asked: Sequence[Question], vectors: npt.NDArray[np.float32], model: str
) -> None:
    """Try every weight, and record the best with what each came to; of equal ones the least extreme."""
    scores: dict[float, float] = {}
    for weight in WEIGHTS:
        rankings = [
            ranked_documents_hybrid(conn, vector, question.query, _CHUNKS, source, weight)
            for vector, question in zip(vectors, asked, strict=True)
        ]
        documents_found = [list(dict.fromkeys(documents))[:DEPTH] for documents in rankings]
        scores[weight] = float(measured(asked, documents_found)[0].mean())
    best = max(scores, key=lambda weight: (scores[weight], -abs(weight - 0.5)))
    by_weight = {f"{weight:g}": round(score, 4) for weight, score in scores.items()}
    set_fusion_weight(conn, source, model, best, {"questions": len(asked), "ndcg_at_10": by_weight})


def _ask(rank: Callable[[int], list[str]], questions: int) -> _Ranking:
    rank(0)  # what the first one waits for (plans, pages) is not what a search costs
    ranking = _Ranking([], [])
    for place in range(questions):
        began = time.perf_counter()
        chunks = rank(place)
        ranking.seconds.append(time.perf_counter() - began)
        ranking.documents.append(list(dict.fromkeys(chunks))[:DEPTH])
    return ranking


def _scored(
    asked: Sequence[Question], rankings: Mapping[str, _Ranking], models: Mapping[Slot, BoundModel], live: Slot
) -> list[Way]:
    figures = {way: measured(asked, ranking.documents) for way, ranking in rankings.items()}
    ways = []
    for way, ranking in rankings.items():
        slot: Slot = next((slot for slot in SLOTS if slot == way), live)
        ndcg, reciprocal, found = figures[way]
        ways.append(
            Way(
                way=way,
                model=models[slot].model.name,
                live=way == live,
                ndcg_at_10=_mean(ndcg),
                mrr=_mean(reciprocal),
                recall_at_10=_mean(found),
                against_live=_less(figures, way, live),
                against_words=_less(figures, way, "words"),
                overlap_at_10=_overlap(ranking.documents, rankings[live].documents),
                p50_ms=float(np.median(ranking.seconds)) * 1000,
            )
        )
    return ways


def _overlap(rankings: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> float:
    """The mean share of a ranking's documents that are in the other one's; an empty one has all of none."""
    return float(np.mean([len({*a} & {*b}) / max(1, len(a)) for a, b in zip(rankings, others, strict=True)]))


def _less(figures: Mapping[str, npt.NDArray[np.float64]], way: str, other: str) -> Score | None:
    return None if way == other or other not in figures else _mean(figures[way][0] - figures[other][0])


def measured(asked: Sequence[Question], documents: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """nDCG@10, reciprocal rank and recall@10 of each question's ranking, best first: (3, questions) float64.

    By ir-measures, so that the figures are those of the field's own tools: gains as they are, discounted by the
    logarithm of the place; a document with any gain is relevant to the other two.
    """
    # Half a second to import: only who evaluates pays for it.
    import ir_measures
    from ir_measures import RR, R, nDCG

    measures = [nDCG @ DEPTH, RR @ DEPTH, R @ DEPTH]
    qrels = {str(place): question.relevant for place, question in enumerate(asked)}
    run = {
        str(place): {document: float(DEPTH - rank) for rank, document in enumerate(ranking[:DEPTH])}
        for place, ranking in enumerate(documents)
    }
    figures = np.zeros((len(measures), len(asked)))  # 0 where nothing came
    for metric in ir_measures.iter_calc(measures, qrels, run):
        figures[measures.index(metric.measure), int(metric.query_id)] = metric.value
    return figures


def _mean(figures: npt.NDArray[np.float64]) -> Score:
    value = float(figures.mean())
    if len(figures) < 2:
        return Score(value=value, low=None, high=None)
    from scipy.stats import bootstrap

    interval = bootstrap(
        (figures,), np.mean, n_resamples=_RESAMPLES, confidence_level=_CONFIDENCE, method="percentile", rng=_SEED
    ).confidence_interval
    return Score(value=value, low=float(interval.low), high=float(interval.high))


def draw(evaluation: Evaluation, file: Path) -> None:
    """Write a picture of every way's three figures, with their intervals; the file's ending says of what kind.

    Raises PermanentError where the file can't be written, or its ending is none of a picture.
    """
    from embedding_assets.operations.pictures import figure

    drawn, axes = figure(f"{evaluation.source} in {evaluation.region}: {evaluation.questions} questions", 6.4, 3.4)
    names: Mapping[str, Callable[[Way], Score]] = {
        "nDCG@10": lambda way: way.ndcg_at_10,
        "MRR": lambda way: way.mrr,
        "recall@10": lambda way: way.recall_at_10,
    }
    width = 0.8 / len(evaluation.ways)
    for number, way in enumerate(evaluation.ways):
        scores = [score(way) for score in names.values()]
        at = np.arange(len(names)) + width * (number - (len(evaluation.ways) - 1) / 2)
        reach: Any = np.array([_reach(score) for score in scores]).T
        label = f"{way.way}: {way.model}{', live' if way.live else ''}"
        axes.bar(at, [score.value for score in scores], width * 0.9, yerr=reach, capsize=3, label=label)
    axes.set_xticks(np.arange(len(names)), list(names))
    axes.set_ylim(0, 1.02)
    drawn.legend(loc="outside lower center", ncols=len(evaluation.ways), frameon=False, fontsize=8)
    try:
        drawn.savefig(file)
    except (OSError, ValueError) as error:
        raise PermanentError(f"{file} can't be written: {error}. Cure: name a .png or .svg in a folder") from error


def _reach(score: Score) -> tuple[float, float]:
    if score.low is None or score.high is None:
        return 0.0, 0.0
    return max(0.0, score.value - score.low), max(0.0, score.high - score.value)


def to_json(evaluation: Evaluation) -> Any:
    """The stable fields of `--json`."""
    return json.loads(evaluation.model_dump_json())
