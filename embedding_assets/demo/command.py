"""The command `demo`."""

import sys

import click

from embedding_assets.cli.shared import ERR, OUT, json_option, print_json
from embedding_assets.settings.home import home


@click.command()
@json_option
def demo(as_json: bool) -> None:
    """Real documents of this machine, searchable in two regions.

    Writes the input, materializes all seven assets, runs the checks, and searches.
    """
    from embedding_assets.demo.run import run as show

    report = show(home(), ERR if as_json else OUT)
    if as_json:
        print_json(report)
    sys.exit(0 if report["succeeded"] else 1)
