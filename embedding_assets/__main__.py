"""The command `embedding-assets`, the demo included; also `python -m embedding_assets`."""

import signal


def main() -> None:
    """Entry point. Ctrl-C ends the imports, which take a second, as it ends any program: without a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from embedding_assets.cli import cli
    from embedding_assets.cli import main as run
    from embedding_assets.demo.command import demo

    signal.signal(signal.SIGINT, before)
    cli.add_command(demo)
    run()


if __name__ == "__main__":
    main()
