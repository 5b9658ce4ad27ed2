"""How well searches find is measured with the field's own figures, by labelled questions or self-made ones."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from embedding_assets.cli import cli
from embedding_assets.errors import PermanentError
from embedding_assets.operations.evaluation import WEIGHTS, Question, evaluate, measured, read_questions
from embedding_assets_tests.conftest import databases
from embedding_assets_tests.support.harness import MODELS, PRIMARY, SOURCE, Sandbox

TEXTS = {
    "refunds": "Refunds are paid back within ten days, to the card that was charged.",
    "shipping": "Parcels leave our warehouse in Rotterdam each evening at six.",
    "passwords": "Forgotten passwords are renewed by a link that is mailed to you.",
    "penguins": "The emperor penguin breeds in the Antarctic winter, on the ice.",
}


@pytest.fixture(scope="module")
def served(postgres: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """The four documents in the primary region, searchable by words as well."""
    with databases(postgres) as make:
        box = Sandbox(tmp_path_factory.mktemp("served"), {PRIMARY: make()}, more={"hybrid": {"language": "english"}})
        box.write(**TEXTS)
        assert all(outcome.succeeded for outcome in box.materialize())
        yield box


def labelled(file: Path, **answers: dict[str, int]) -> Path:
    lines = [
        json.dumps({"query": query.replace("_", " "), "relevant": relevant}) for query, relevant in answers.items()
    ]
    file.write_text("\n".join(lines))
    return file


def test_figures_are_those_of_the_textbook() -> None:
    asked = [Question(query="one", relevant={"a": 3, "b": 1}), Question(query="two", relevant={"a": 1})]

    ndcg, reciprocal, found = measured(asked, [["c", "b", "a"], []])

    best = 3 + 1 / math.log2(3)
    assert ndcg == pytest.approx([(1 / math.log2(3) + 3 / 2) / best, 0])
    assert reciprocal == pytest.approx([1 / 2, 0])
    assert found == pytest.approx([1, 0])


def test_every_way_to_search_is_scored_by_labelled_questions(served: Sandbox) -> None:
    questions = labelled(
        served.root / "questions.jsonl",
        how_do_I_get_my_money_back_on_my_card={"refunds.md": 1},
        where_do_penguins_breed={"penguins.md": 1},
        I_forgot_my_password={"passwords.md": 1, "gone.md": 1},
    )

    found = evaluate(served.deployment, PRIMARY, SOURCE, read_questions(questions), made=0)

    assert [(way.way, way.model, way.live) for way in found.ways] == [
        ("v1", MODELS["v1"]["name"], True),
        ("v2", MODELS["v2"]["name"], False),
        ("words", MODELS["v1"]["name"], False),
        ("hybrid", MODELS["v1"]["name"], False),
    ]
    live = found.ways[0]
    assert (live.mrr.value, live.against_live) == (1, None)
    assert live.recall_at_10.value == pytest.approx((1 + 1 + 1 / 2) / 3)  # all four come; one answer is not there
    assert live.recall_at_10.low is not None
    assert live.recall_at_10.high is not None
    assert live.recall_at_10.low < live.recall_at_10.value < live.recall_at_10.high
    assert all(way.against_live is not None for way in found.ways[1:])
    assert [way.against_words is None for way in found.ways] == [False, False, True, False]
    assert found.unknown == ("gone.md",)


def test_questions_made_of_the_source_find_their_own_documents(served: Sandbox) -> None:
    found = evaluate(served.deployment, PRIMARY, SOURCE, None, made=3)

    assert (found.questions, found.self_made, found.unknown) == (3, True, ())
    assert found.ways[0].recall_at_10.value == 1
    assert found == evaluate(served.deployment, PRIMARY, SOURCE, None, made=3).model_copy(
        update={"ways": found.ways}  # their latencies differ, nothing else may
    )


def test_a_weight_is_chosen_by_questions_and_used_from_then_on(served: Sandbox) -> None:
    """By a word that the vectors of these do not know."""
    questions = read_questions(
        labelled(served.root / "words.jsonl", Rotterdam={"shipping.md": 1}, Antarctic={"penguins.md": 1})
    )

    found = evaluate(served.deployment, PRIMARY, SOURCE, questions, made=0, choose=True)
    again = evaluate(served.deployment, PRIMARY, SOURCE, questions, made=0)

    assert found.weight == again.weight
    assert found.weight in WEIGHTS
    hybrid = found.ways[-1].ndcg_at_10.value
    assert hybrid >= max(way.ndcg_at_10.value for way in found.ways if way.way in ("v1", "words"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: "),
        ('{"query": " ", "relevant": {"a": 1}}', "line 2: query: "),
        ('{"query": "a", "relevant": {}}', "line 2: relevant: "),
        ('{"query": "a", "relevant": {"a": 0}}', "line 2: relevant.a: "),
        ('{"query": "a", "relevant": {"a": 1}, "answer": "b"}', "line 2: answer: "),
    ],
)
def test_a_line_that_is_no_question_is_named_with_its_cure(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"query": "a", "relevant": {"a": 1}}\n' + line)

    with pytest.raises(PermanentError, match="Cure: a line is an object such as") as error:
        read_questions(file)

    assert said in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_a_file_without_a_question_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_bytes(content)

    with pytest.raises(PermanentError, match="Cure: "):
        read_questions(file)


def test_a_region_that_serves_nothing_says_what_to_do(sandbox: Sandbox) -> None:
    with pytest.raises(PermanentError, match=r"serves nothing yet\. Cure: embedding-assets materialize"):
        evaluate(sandbox.deployment, PRIMARY, SOURCE, None, made=3)


def test_the_command_prints_a_table_or_json_and_draws(served: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in served.environment().items():
        monkeypatch.setenv(name, value)
    picture = served.root / "scores.svg"

    table = CliRunner().invoke(cli, ["evaluate", "--made", "3", "--picture", str(picture)])
    answer = CliRunner().invoke(cli, ["evaluate", "--made", "3", "--json"])

    assert (table.exit_code, answer.exit_code) == (0, 0), table.output + answer.output
    assert "v1, live" in table.output
    assert "3 questions of handbook" in table.output
    assert "Hybrid search of handbook less " in table.output.replace("\n", " ")
    (fields,) = json.loads(answer.output)
    assert set(fields) == {"region", "source", "questions", "self_made", "unknown", "weight", "ways"}
    assert set(fields["ways"][0]) == {
        "way", "model", "live", "ndcg_at_10", "mrr", "recall_at_10", "against_live", "against_words", "overlap_at_10",
        "p50_ms",
    }  # fmt: skip
    assert picture.read_text().startswith("<?xml")
