"""Keeps every region's pgvector search table in step with document sources.

The way of a document: `sources` reads it, `chunking` cuts it, `embedding` makes vectors of the chunks, `snapshots`
keeps all that as immutable parts and copies them to each region's store, `pgvector` loads a region's copy into its
tables, indexes it and publishes it. `work` runs shards side by side. None of these knows Dagster.

`settings` says what there is. `operations` are the uses of it that cross packages, `orchestration` is Dagster's view of
the steps and what starts them, `cli` and `demo` are for people.
"""
