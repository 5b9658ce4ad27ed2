-- The registry as an operator reads it: a row a slot, whether a model is bound to it or not.
--
-- A slot is filled where no published generation waits to be loaded anew: binding a model to it has taken their roots
-- from them (pgvector/schema/models.py).
CREATE OR REPLACE VIEW embedding_assets.model_versions AS
SELECT slots.slot, name, dimensions, provider,
       (SELECT format_type(atttypid, atttypmod) FROM pg_catalog.pg_attribute
        WHERE attrelid = 'embedding_assets.chunks'::regclass AND attname = 'embedding_' || slots.slot) AS type,
       chunking,
       CASE
           WHEN name IS NULL THEN 'empty'
           WHEN live THEN 'live'
           WHEN EXISTS (
               SELECT FROM embedding_assets.generations WHERE state = 'published' AND target_root = ''
           ) THEN 'back-filling'
           WHEN superseded_at IS NOT NULL THEN 'retiring'
           ELSE 'ready'
       END AS state,
       bound_at, live_since, superseded_at
FROM unnest(ARRAY['v1', 'v2']) AS slots (slot) LEFT JOIN embedding_assets.models USING (slot);

COMMENT ON VIEW embedding_assets.model_versions IS
    'Each slot''s model version and its state: empty, back-filling, ready, live or retiring.';
