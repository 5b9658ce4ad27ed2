"""How the shards of a step are worked on: side by side, with bounded memory."""
