"""The command `embedding-assets`, the demo included; also `python -m embedding_assets`."""

from embedding_assets.cli import cli, main
from embedding_assets.demo.command import demo

cli.add_command(demo)

if __name__ == "__main__":
    main()
