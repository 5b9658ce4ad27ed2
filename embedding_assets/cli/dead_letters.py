"""The commands about what could not be processed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import click

from embedding_assets.cli.shared import OUT, current_deployment, json_option, print_json, source_option

if TYPE_CHECKING:
    from embedding_assets.pgvector.dead_letters import DeadLetter


@click.group("dead-letters")
def dead_letters() -> None:
    """Documents and chunks that could not be processed.

    What, why, and what becomes of them:

    \b
    pending    nobody looked at it yet; the daily reconciliation does
    replayed   the source's next run tries it again
    escalated  people were told
    resolved   it is gone, or somebody accepts that it stays out
    """


_letters = click.argument("ids", metavar="ID...", nargs=-1, type=int, required=True)


@dead_letters.command("list")
@source_option
@click.option("--all", "with_resolved", is_flag=True, help="The resolved ones as well.")
@json_option
def list_letters(source: str | None, with_resolved: bool, as_json: bool) -> None:
    """Every dead letter that is not resolved, seen last first.

    With --json a list of {id, source, stage, model_version, kind, item, document_id, chunk_id, payload, error_class,
    message, cure, attempts, replays, state, standing, first_seen, last_seen}: kind is document or text, payload says
    where it can be read, standing whether the last run still found it dead.
    """
    from embedding_assets.operations import dead_letters as letters

    listed = letters.listed(
        current_deployment(), source, [*letters.OPEN, "resolved"] if with_resolved else letters.OPEN
    )
    _print_letters(listed, as_json)


@dead_letters.command("show")
@click.argument("letter_id", metavar="ID", type=int)
@json_option
def show_letter(letter_id: int, as_json: bool) -> None:
    """One dead letter, and the text that it is about if the store has it.

    With --json the letter's fields and `text`.
    """
    from embedding_assets.cli import terminal
    from embedding_assets.operations import dead_letters as letters

    shown = letters.show(current_deployment(), letter_id)
    if as_json:
        print_json(shown.letter._asdict() | {"text": shown.text})
    else:
        OUT.print(terminal.letter_details(shown.letter, shown.text))


@dead_letters.command("replay")
@_letters
@json_option
def replay_letters(ids: tuple[int, ...], as_json: bool) -> None:
    """Have the next run of their source try these again: `embedding-assets materialize` runs it now."""
    _mark_letters(ids, "replayed", as_json)


@dead_letters.command("resolve")
@_letters
@json_option
def resolve_letters(ids: tuple[int, ...], as_json: bool) -> None:
    """Accept that these stay out of search: they no longer count in the checks."""
    _mark_letters(ids, "resolved", as_json)


def _mark_letters(ids: tuple[int, ...], state: Literal["replayed", "resolved"], as_json: bool) -> None:
    from embedding_assets.operations import dead_letters as letters

    _print_letters(letters.mark(current_deployment(), ids, state), as_json)


def _print_letters(shown: "Sequence[DeadLetter]", as_json: bool) -> None:
    from embedding_assets.cli import terminal

    if as_json:
        print_json([letter._asdict() for letter in shown])
    elif shown:
        OUT.print(terminal.letters_table(shown, narrow=OUT.is_terminal))
    else:
        OUT.print("no dead letters")
