"""The command `embedding-assets`. Every command has `--json`; exit codes: 0 done, 1 something is wrong, 2 wrong use.

One module a group of commands; what they do is in `operations` and `orchestration`, which are imported when a command
runs: Dagster alone takes a second.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from embedding_assets.cli import dead_letters, evaluate, housekeeping, looks, materialize, migration, worker
from embedding_assets.cli.shared import ERR, config_option
from embedding_assets.errors import PipelineError


def main() -> None:
    """Run the command of this process: an error of the pipeline, or Ctrl-C, is a sentence on stderr and exit code 1."""
    # A pool of connections that Ctrl-C met while it closed one logs a traceback of its own.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    try:
        cli(args=arguments(sys.argv[1:]))
    except PipelineError as error:
        ERR.print("error:", style="bold red", end=" ")
        ERR.print(str(error), markup=False)
        sys.exit(1)


def arguments(words: Sequence[str]) -> list[str]:
    """The arguments, read as UTF-8 whatever the locale says: a timer's is often C. Exits where one is none."""
    read: list[str] = []
    for argument in words:
        try:
            read.append(os.fsencode(argument).decode())
        except UnicodeDecodeError:
            shown = ascii(argument).strip("'")
            ERR.print("error:", style="bold red", end=" ")
            cure = 'Cure: type it in a UTF-8 terminal, or convert it: "$(printf %s … | iconv -f LATIN1 -t UTF-8)".'
            ERR.print(f"the argument {shown} is not UTF-8. {cure}", markup=False)
            sys.exit(2)
    return read


class _WithConfig(click.Group):
    """A group whose commands all take --config, wherever on the line it stands, and end with a word on Ctrl-C."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        for command in (cmd, *(cmd.commands.values() if isinstance(cmd, click.Group) else ())):
            config_option(command)
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ERR.print("stopped by Ctrl-C. What was done stays, and the same command goes on from there.")
            sys.exit(1)


@click.group(cls=_WithConfig, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@config_option
@click.version_option(package_name="embedding-assets")
def cli() -> None:
    """Keep every region's pgvector search table in step with document sources.

    \b
    Settings     --config, or EMBEDDING_ASSETS_CONFIG: a YAML file; else the demo's two sources and two regions
    Local files  EMBEDDING_ASSETS_HOME, by default .embedding_assets/ in this folder
    Exit codes   0 done; 1 something failed or differs; 2 wrong use
    """


for command in (
    materialize.materialize,
    housekeeping.prepare,
    worker.worker,
    looks.status,
    looks.search,
    evaluate.evaluate,
    migration.migration,
    looks.verify,
    looks.doctor,
    dead_letters.dead_letters,
    looks.dsn,
    housekeeping.gc,
    housekeeping.forget,
    housekeeping.upkeep,
    housekeeping.stop,
    housekeeping.dagster_home,
):
    cli.add_command(command)
