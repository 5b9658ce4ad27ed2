"""Commands as a user sees them: in a terminal, of some width, in colour or not, with Ctrl-C."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How a command ended, and all that went to its terminal, control sequences included."""

    code: int
    shown: str


def in_terminal(
    command: Sequence[str | Path],
    *,
    columns: int,
    environment: Mapping[str, str],
    folder: Path,
    interrupt_at: str | None = None,
    timeout: float = 600,
) -> Ended:
    """Run a command in a terminal of its own; Ctrl-C is pressed once the terminal shows `interrupt_at`."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm-256color"},
        cwd=folder,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # Linux says so when nobody has the terminal open any more
                break
            if not piece:
                break
            shown += piece
            if interrupt_at is not None and interrupt_at.encode() in shown:
                os.write(ours, b"\x03")
                interrupt_at = None
        return Ended(process.wait(max(1.0, deadline - time.monotonic())), shown.decode())
    finally:
        process.kill()
        process.wait()
        os.close(ours)
