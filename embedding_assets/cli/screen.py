"""The consoles that the command line prints on."""

import io
import os
import sys
from typing import Any, Final

import click
from rich.console import Console

_FILE_WIDTH: Final = 10_000
"""Columns of what is no terminal: whoever reads a file or a pipe finds each row of a table whole, on one line."""


class Screen(Console):
    """A console that fails nothing: once a terminal is gone, a disk full or a pipe closed, it shows nothing more."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False)
        # Wrapped between words on a terminal, which would do so within them; a file keeps its lines whole.
        self.soft_wrap = not self.is_terminal
        if not self.is_terminal:
            self.width = _FILE_WIDTH
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # Where the locale knows no check marks: a question mark in their place.
                stream.reconfigure(errors="replace")

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._give_up()
            if not self.stderr:
                click.echo(f"standard output can't be written: {error.strerror}. The work goes on unseen.", err=True)

    def on_broken_pipe(self) -> None:
        self._give_up()

    def _give_up(self) -> None:
        self.quiet = True
        # What Python still has in its buffer would otherwise be an error at the exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.file.fileno())
        os.close(null)
