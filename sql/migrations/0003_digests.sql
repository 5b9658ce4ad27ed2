-- Each row's digest beside it, so that a delta load asks an index what differs.

-- While the table is locked every reader waits behind us.
SET LOCAL lock_timeout = '5s';

-- Nullable here, since published generations have rows without one; a generation loaded from now on has it NOT NULL.
ALTER TABLE embedding_assets.chunks ADD COLUMN IF NOT EXISTS digest bigint;

-- Rows inserted, updated and deleted by delta loads since the generation was loaded whole.
ALTER TABLE embedding_assets.generations ADD COLUMN IF NOT EXISTS rows_changed bigint NOT NULL DEFAULT 0;

-- target_root is also '' where the generation no longer holds what it was loaded from, and 'delta …' while its shards
-- are being replaced one by one.
UPDATE embedding_assets.generations SET target_root = '' WHERE state = 'published';

-- Unfinished ones lack the column and could never be attached; whoever loads next begins anew.
DO $$
DECLARE
    unfinished integer;
BEGIN
    FOR unfinished IN DELETE FROM embedding_assets.generations WHERE state <> 'published' RETURNING id LOOP
        EXECUTE format('DROP TABLE IF EXISTS embedding_assets.%I', 'generation_' || unfinished);
    END LOOP;
END
$$;
