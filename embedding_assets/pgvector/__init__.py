"""A region's database: its schema and roles, loads, indexes, publication, and the search surface.

Here belongs all SQL of a region, and what runs an embedded server for it. Rows come from the caller as Arrow tables:
this package knows no stores, and no Dagster.

What a caller sees of Postgres's errors: a function that is a use by itself (`load`, `build_indexes`, `publish`,
`compare`, `examine`, `act`, `migrate`: whatever names by `pipeline_errors` what it is doing) raises PermanentError,
with its cure, or TransientError, which may pass. Any other that takes a connection is a step within such a use, and
lets psycopg's errors through to it; a deployment's own connections have the same net. What a function raises besides,
its docstring says.
"""
