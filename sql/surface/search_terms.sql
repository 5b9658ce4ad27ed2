-- What search() and search_hybrid() have in common: the expression of the distance to query $1, and the conditions on
-- source $3, filter $4 and readable sources $5. Sets hnsw.ef_search, which the caller's own SET takes back.
--
-- k is bounded, for a reader can ask for the whole table else, sorted in the server's memory.
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
    IF live.name <> coalesce(nullif(current_setting('embedding_assets.model', true), ''), live.name) THEN
        RAISE EXCEPTION 'the query was embedded with %, the live model is % (%)',
            current_setting('embedding_assets.model'), live.name, live.slot
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Embed the query with the live model.';
    END IF;
    IF query IS NULL THEN
        RAISE EXCEPTION 'search needs a query vector, not NULL' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'search needs a k from 1 to 10000, not %', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'To read more rows than that, use the view live_chunks.';
    END IF;
    IF cardinality(query::real[]) <> live.dimensions THEN
        RAISE EXCEPTION 'the query has % dimensions, the live model % (%) has %',
            cardinality(query::real[]), live.name, live.slot, live.dimensions
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Embed the query with the live model.';
    END IF;
    IF 0 = ALL (query::real[]) THEN -- its distance to anything is NaN, and an index finds nothing by it
        RAISE EXCEPTION 'the query is a vector of zeros, which has no direction'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'A model gives it for a text without words: ask another one.';
    END IF;
    IF jsonb_typeof(filter) <> 'object' THEN -- metadata are objects, and contain nothing else
        RAISE EXCEPTION 'the filter is of type %, not an object', jsonb_typeof(filter)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Write it as {"field": value}.';
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

COMMENT ON FUNCTION embedding_assets.search_terms(vector, integer, text, jsonb) IS
    'What search() and search_hybrid() have in common: checks the arguments and words the query.';
