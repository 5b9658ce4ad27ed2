-- What upkeep compares a generation's HNSW indexes with: how each was when it was built, and when recall was measured.

ALTER TABLE embedding_assets.recall
    -- The index measured (pg_class.oid); one built since has another, and is yet to be measured.
    ADD COLUMN IF NOT EXISTS index_id oid,
    ADD COLUMN IF NOT EXISTS built_bytes_per_vector double precision,
    -- generations.rows_changed when it was built, and when it was measured.
    ADD COLUMN IF NOT EXISTS changes_at_build bigint,
    ADD COLUMN IF NOT EXISTS changes_at_measurement bigint,
    ADD COLUMN IF NOT EXISTS measured_at timestamptz NOT NULL DEFAULT now();
