-- A row's digest is now made of the hashes that its parts bring along, of the chunk's too. Rows published with the older
-- kind serve on; every source is loaded whole once more, as 0009 had it.

UPDATE embedding_assets.generations SET target_root = '' WHERE state = 'published';

DO $$
DECLARE
    unfinished integer;
BEGIN
    FOR unfinished IN DELETE FROM embedding_assets.generations WHERE state <> 'published' RETURNING id LOOP
        EXECUTE format('DROP TABLE IF EXISTS embedding_assets.%I', 'generation_' || unfinished);
    END LOOP;
END
$$;
