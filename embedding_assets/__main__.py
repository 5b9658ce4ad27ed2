"""The command `embedding-assets`, the demo included; also `python -m embedding_assets`."""

import signal
import sys


def main() -> None:
    """Entry point. Ctrl-C ends the imports, which take a second, as it ends any program: without a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    try:
        from embedding_assets.cli import cli
        from embedding_assets.cli import main as run
        from embedding_assets.demo.command import demo
    except ModuleNotFoundError as error:
        sys.exit(
            f"embedding-assets: {error.name} is not installed: the command is the pipeline's, and this environment has "
            "no more than a client needs. Cure: pip install 'embedding-assets[pipeline]'"
        )

    signal.signal(signal.SIGINT, before)
    cli.add_command(demo)
    run()


if __name__ == "__main__":
    main()
