"""A shard's rows as the database takes them: aligned, encoded for COPY, and their digests. Pure: no connection."""
