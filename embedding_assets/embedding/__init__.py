"""Texts in, checked unit vectors out: the embedding engine, its providers, and the stage that uses them.

`options` says what a model version is bound to, `engine` makes vectors, `stage` makes a snapshot of a source's chunks
into one of vectors. Knows nothing of Dagster and of databases; only `stage` and `journal` keep anything.
"""
