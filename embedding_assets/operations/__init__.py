"""Use cases across the domain packages: what people and runs ask for, free of Dagster and of the terminal.

Here belongs what needs settings, stores and databases at once. What needs one of them is in its package.
"""
