-- search() and search_hybrid() use the stored ef_search: it is measured with queries as far from any row as short questions
-- are. One measured before is from nearer ones, and too small: pgvector's own default until the next measurement.

UPDATE embedding_assets.models SET ef_search = 40 WHERE ef_search < 40;
UPDATE embedding_assets.recall SET ef_search = 40 WHERE ef_search < 40;

-- What search() and search_hybrid() have in common: the expression of the distance to query $1, and the conditions on
-- source $3, filter $4 and readable sources $5. Sets hnsw.ef_search, which the caller's own SET takes back.
CREATE OR REPLACE FUNCTION embedding_assets.search_terms(
    query vector, k integer, source text, filter jsonb,
    OUT distance text, OUT conditions text, OUT readable text[]
) LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    live record;
    least_ef integer;
    -- Where pgvector lives, with a dot: its type's name is qualified under this search_path.
    extension text := left(pg_typeof(query)::text, -length('vector'));
BEGIN
    SELECT slot, name, dimensions, ef_search,
           (SELECT atttypid::regtype FROM pg_attribute
            WHERE attrelid = 'embedding_assets.chunks'::regclass AND attname = 'embedding_' || slot) AS type,
           (SELECT relrowsecurity FROM pg_class WHERE oid = 'embedding_assets.chunks'::regclass) AS narrowed
    INTO live FROM embedding_assets.models WHERE models.live;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this database has no live model yet'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Materialize pgvector_table for this region.';
    END IF;
    IF query IS NULL OR k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'search needs a query vector and a k of at least 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF cardinality(query::real[]) <> live.dimensions THEN
        RAISE EXCEPTION 'the query has % dimensions, the live model % (%) has %',
            cardinality(query::real[]), live.name, live.slot, live.dimensions
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Embed the query with the live model.';
    END IF;
    -- The stored one is measured with queries about the source itself, and without a filter. A question about another of
    -- several sources found .90 with 40 and .99 with 120. Under a filter more of what the scan comes by is dropped: under
    -- one of 10 % short questions found .96 with 100 and .98 with 200, in 2.5 ms both.
    least_ef := CASE
        WHEN coalesce(filter, '{}') <> '{}' THEN 200
        WHEN (SELECT count(*) FROM embedding_assets.generations WHERE state = 'published') > 1 THEN 100
        ELSE 1
    END;
    PERFORM set_config('hnsw.ef_search', least(greatest(live.ef_search, k, least_ef), 1000)::text, true);
    distance := format('embedding_%s OPERATOR(%s<=>) $1::%s', live.slot, extension, live.type);
    -- Conditions that say nothing are left out: the planner would take each for a narrow one.
    conditions := format('embedding_%s IS NOT NULL', live.slot)
        || CASE WHEN source IS NULL THEN '' ELSE ' AND source = $3' END
        || CASE WHEN coalesce(filter, '{}') = '{}' THEN '' ELSE ' AND metadata @> $4' END;
    -- A condition of ours, not the policy: under a policy no index may serve @> and @@, which are not leakproof.
    IF live.narrowed THEN
        readable := embedding_assets.readable_sources();
        conditions := conditions || ' AND source = ANY ($5)';
    END IF;
END
$$;
