"""The demo: real documents of this machine, made searchable in two regions. A guest of the command line."""
