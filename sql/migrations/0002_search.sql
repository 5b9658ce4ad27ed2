-- The search surface: search() below; the view live_chunks is made when the live model is known.

-- Loads pgvector's library, so that a role without privileges may name its settings below.
DO $$ BEGIN PERFORM '[1]'::vector; END $$;

DO $$
BEGIN
    CREATE TYPE embedding_assets.hit AS (
        source text,
        document_id text,
        ordinal integer,
        content text,
        metadata jsonb,
        distance double precision
    );
EXCEPTION WHEN duplicate_object THEN
    NULL;
END
$$;

-- The k chunks nearest to a vector of the live model by cosine distance, nearest first; equal distances in the order of
-- source, document and ordinal. `source` narrows to one source, `filter` to metadata that contains it (metadata @> filter).
-- Returns k rows whenever k exist: where a filter leaves the index too few, the table itself is searched.
--
-- Volatile on purpose: each call then reads with a snapshot taken after the table's lock was granted, so that a
-- generation published meanwhile is seen whole.
CREATE OR REPLACE FUNCTION public.search(
    query vector, k integer, source text DEFAULT NULL, filter jsonb DEFAULT '{}'
) RETURNS SETOF embedding_assets.hit
LANGUAGE plpgsql VOLATILE
SET search_path FROM CURRENT
SET hnsw.iterative_scan = 'strict_order'
SET hnsw.ef_search = '40' -- set to the model's below; named here so that the caller's own value comes back after
SET jit = off -- compiling takes longer than the search
AS $search$
DECLARE
    live record;
    distance text;
    conditions text;
BEGIN
    SELECT slot, name, dimensions, ef_search INTO live FROM embedding_assets.models WHERE models.live;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this database has no live model yet'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Materialize pgvector_table for this region.';
    END IF;
    IF query IS NULL OR k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'search needs a query vector and a k of at least 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF vector_dims(query) <> live.dimensions THEN
        RAISE EXCEPTION 'the query has % dimensions, the live model % (%) has %',
            vector_dims(query), live.name, live.slot, live.dimensions
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Embed the query with the live model.';
    END IF;
    PERFORM set_config('hnsw.ef_search', least(greatest(live.ef_search, k), 1000)::text, true);
    distance := format(
        'embedding_%s <=> $1::%s', live.slot, CASE WHEN live.dimensions <= 2000 THEN 'vector' ELSE 'halfvec' END
    );
    -- Conditions that say nothing are left out: the planner would take each for a narrow one.
    conditions := format('embedding_%s IS NOT NULL', live.slot)
        || CASE WHEN source IS NULL THEN '' ELSE ' AND source = $3' END
        || CASE WHEN coalesce(filter, '{}') = '{}' THEN '' ELSE ' AND metadata @> $4' END;
    RETURN QUERY EXECUTE format(
        $query$
        WITH by_index AS MATERIALIZED (
            SELECT source, document_id, ordinal, content, metadata, %1$s AS distance
            FROM embedding_assets.chunks WHERE %2$s ORDER BY %1$s LIMIT $2
        ), by_table AS (
            SELECT source, document_id, ordinal, content, metadata, %1$s AS distance
            FROM embedding_assets.chunks WHERE (SELECT count(*) FROM by_index) < $2 AND %2$s
            ORDER BY (%1$s) + 0 LIMIT $2 -- + 0: not by the index
        )
        SELECT * FROM by_index WHERE (SELECT count(*) FROM by_index) = $2
        UNION ALL
        SELECT * FROM by_table
        ORDER BY distance, source, document_id, ordinal
        $query$, distance, conditions
    ) USING query, k, source, filter;
END
$search$;
