"""A region's database: its schema and roles, loads, indexes, publication, and the search surface.

Here belongs all SQL of a region, and what runs an embedded server for it. Rows come from the caller as Arrow tables:
this package knows no stores, and no Dagster.
"""
