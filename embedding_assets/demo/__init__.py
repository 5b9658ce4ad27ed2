"""The demo: real documents of this machine, made searchable in two regions. A guest of the command line.

Here belongs where the documents come from and what is shown of the run. What runs is the ordinary pipeline: nothing
below knows of a demo.
"""
