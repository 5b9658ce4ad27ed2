"""What the commands have in common: the consoles, the settings, and options that mean the same everywhere."""

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import click

from embedding_assets.cli.screen import Screen
from embedding_assets.settings.home import CONFIG, home

if TYPE_CHECKING:
    from embedding_assets.operations.deployment import Deployment

OUT: Final = Screen()
ERR: Final = Screen(stderr=True)


def current_deployment() -> "Deployment":
    """What the settings of this environment describe."""
    # Imported here: help, a wrong option and --version open nothing, and need not wait for what would.
    from embedding_assets.operations.deployment import Deployment
    from embedding_assets.settings.current import current_settings

    return Deployment(current_settings(), home())


def chosen(name: str | None, known: Mapping[str, object], what: str) -> list[str]:
    """The one that was given, or all that there are; click's error where there is none of this name."""
    if name is not None and name not in known:
        raise click.UsageError(f"there is no {what} {name!r}: the settings have {', '.join(sorted(known))}.")
    return [name] if name is not None else sorted(known)


def print_json(value: object) -> None:
    """Print what `--json` promises."""
    # Escaped where the locale's encoding lacks characters: JSON has no question marks for them.
    click.echo(json.dumps(value, indent=2, ensure_ascii=not OUT.encoding.startswith("utf"), default=str))


def _use_config(context: click.Context, option: click.Parameter, file: str | None) -> None:
    # In the environment, so that the processes that a command starts use the same settings.
    if file is not None:
        os.environ[CONFIG] = os.path.abspath(file)


config_option = click.option(
    "--config", metavar="FILE", expose_value=False, callback=_use_config, help=f"Settings.  [default: ${CONFIG}]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON with stable fields instead of text.")
source_option = click.option("--source", metavar="S", help="Only this source.  [default: all]")
region_option = click.option("--region", metavar="R", help="Only this region.  [default: all]")
one_region_option = click.option("--region", metavar="R", help="In this region.  [default: the primary]")
