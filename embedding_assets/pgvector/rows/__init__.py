"""A shard's rows as the database takes them: aligned, encoded for COPY, and their digests.

Here belongs what is pure: bytes and arrays in, bytes and arrays out. `fingerprint` also has the SQL that comes to the
same numbers, for each is the other's proof. Who sends what belongs to `loading`.
"""
