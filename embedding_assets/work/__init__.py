"""How the tasks of a step are worked on: by threads or processes of this machine, with bounded memory.

Here belongs which tasks there are, how one travels to another process, and who does it. What is done for it belongs to
the domain packages.
"""
