"""The command that scores a region's searches."""

from pathlib import Path

import click

from embedding_assets.cli.shared import (
    OUT,
    chosen,
    current_deployment,
    json_option,
    one_region_option,
    print_json,
    source_option,
)


@click.command()
@click.option("--queries", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Labelled questions.")
@click.option(
    "--made", metavar="N", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Else make so many."
)
@click.option("--choose", is_flag=True, help="Record how much the vector counts in hybrid search.")
@source_option
@one_region_option
@click.option(
    "--picture", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Draw it, .png or .svg."
)
@json_option
def evaluate(
    queries: Path | None,
    made: int,
    choose: bool,
    source: str | None,
    region: str | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """How well searches of a source find, in each way to search.

    By each slot's vectors, and, where hybrid is enabled, by the words alone and by both.

    FILE is JSONL, a question a line: {"query": "how do refunds work", "relevant": {"billing/refunds.md": 1}}, with the
    documents that answer it, and how much each is worth. Without FILE questions are made of the source itself, some
    words in a row of a chunk, whose document is sought: they compare two models, and say less of people's questions.

    nDCG@10, MRR (of the first ten) and recall@10 count documents, with bootstrap intervals of 95 %. "against live" is
    the nDCG@10 less that of the live model's vectors: better or worse where its interval leaves out 0. Hybrid search is
    compared in a line of its own with the better of the two that it is made of.

    With --choose hybrid search is tried with every weight of the vector from 0 to 1, by tenths, and answers with the
    best from then on, as long as the same model is live. It takes FILE: questions made of the texts' own words would
    choose the words.

    With --json a list of {region, source, questions, self_made, unknown, weight, ways}, unknown the documents named
    that the region does not serve, weight what was chosen so, ways a list of {way, model, live, ndcg_at_10, mrr,
    recall_at_10, against_live, against_words, overlap_at_10, p50_ms}, each figure {value, low, high}; way is v1, v2,
    words or hybrid.
    """
    from embedding_assets.cli import scores
    from embedding_assets.operations import evaluation

    deployment = current_deployment()
    sources = chosen(source, deployment.settings.sources, "source")
    if len(sources) > 1 and (queries or picture):
        raise click.UsageError(f"say of which source: --source {' or '.join(sources)}.")
    if choose and not queries:
        raise click.UsageError("--choose takes --queries: say by which questions.")
    place = chosen(region or deployment.settings.primary_region, deployment.settings.regions, "region")[0]
    questions = evaluation.read_questions(queries) if queries else None
    evaluations = [evaluation.evaluate(deployment, place, name, questions, made, choose=choose) for name in sources]
    if picture:
        evaluation.draw(evaluations[0], picture)
    if as_json:
        print_json([evaluation.to_json(scored) for scored in evaluations])
        return
    OUT.print(scores.evaluation_table(evaluations))
    for note in scores.evaluation_notes(evaluations):
        OUT.print(note)
