"""What `evaluate` prints."""

from collections.abc import Sequence

from rich.table import Table

from embedding_assets.cli.terminal import plain
from embedding_assets.operations.evaluation import Evaluation, Score


def evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    """A line a source and way to search."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("source", "way", "model"):
        table.add_column(name, overflow="fold")
    for name in ("nDCG@10", "MRR", "recall@10", "against live", "p50 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for evaluation in evaluations:
        for way in evaluation.ways:
            table.add_row(
                plain(evaluation.source),
                f"{way.way}, live" if way.live else way.way,
                plain(way.model),
                *(_score(score) for score in (way.ndcg_at_10, way.mrr, way.recall_at_10)),
                _score(way.against_live, "+") if way.against_live else "",
                f"{way.p50_ms:.1f}",
            )
    return table


def _score(score: Score, sign: str = "") -> str:
    """As .812 (.79 to .84)."""

    def short(value: float, digits: int) -> str:
        return f"{value:{sign}.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{sign}.{digits}f}"

    if score.low is None or score.high is None:
        return short(score.value, 3)
    return f"{short(score.value, 3)} ({short(score.low, 2)} to {short(score.high, 2)})"


def evaluation_notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """What the table does not say: how many questions of whose these were, and what the region lacks."""
    asked = " and ".join(
        f"{evaluation.questions} questions of {plain(evaluation.source)}" for evaluation in evaluations
    )
    notes = [f"{asked}. In brackets: intervals of 95 %."]
    if evaluations[0].self_made:
        notes.append("They are made of the sources: they compare, and say less of people's questions.")
    for evaluation in evaluations:
        if evaluation.weight is not None:
            counts = f"{evaluation.weight:.0%}"
            notes.append(f"In hybrid search of {plain(evaluation.source)} the vector was chosen to count {counts}.")
        notes += _hybrid_note(evaluation)
        if evaluation.unknown:
            first = ", ".join(plain(document) for document in evaluation.unknown[:3])
            notes.append(f"{len(evaluation.unknown)} of the documents named are not in this region, such as {first}.")
    return notes


def _hybrid_note(evaluation: Evaluation) -> list[str]:
    """Hybrid search against the better of the two that it is made of."""
    ways = {"the live vectors" if way.live else way.way: way for way in evaluation.ways}
    if "hybrid" not in ways:
        return []
    hybrid = ways["hybrid"]
    halves = {"the live vectors": hybrid.against_live, "the words": hybrid.against_words}
    better, score = min(((name, score) for name, score in halves.items() if score), key=lambda half: half[1].value)
    return [f"Hybrid search of {plain(evaluation.source)} less {better}, the better of the two: {_score(score, '+')}."]
