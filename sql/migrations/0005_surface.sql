-- The search surface for applications: search() with better filters, search_hybrid(), and what row-level security asks.
--
-- Both functions run with the rights of their owner, so that their callers need none on the tables. Hence the pinned
-- search_path without any schema that others may write to; pgvector's own names are qualified where they are used.
-- Owners and grants are set in pgvector/roles.py: they depend on what the migrating role may do.

-- Loads pgvector's library, so that a role without privileges may name its settings below.
DO $$ BEGIN PERFORM '[1]'::vector; END $$;

-- One row: what the surface offers besides search().
CREATE TABLE IF NOT EXISTS embedding_assets.surface (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    language text -- the text search configuration of search_hybrid(), qualified; NULL where it is not enabled
);
INSERT INTO embedding_assets.surface DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Which database role may read which source, where row-level security is on (pg_class.relrowsecurity of chunks).
CREATE TABLE IF NOT EXISTS embedding_assets.readers (
    role text NOT NULL,
    source text NOT NULL,
    PRIMARY KEY (role, source)
);

-- The sources that this session may read, by the role that it logged in as: SET ROLE changes nothing. Whoever owns the
-- tables loads and checks them, and reads all. Open to everybody: a policy calls it with the reader's own rights, and it
-- tells a session of nothing but itself.
CREATE OR REPLACE FUNCTION embedding_assets.readable_sources() RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_has_role(
        session_user, (SELECT relowner FROM pg_class WHERE oid = 'embedding_assets.chunks'::regclass), 'USAGE'
    ) THEN
        RETURN ARRAY(SELECT source FROM embedding_assets.generations WHERE state = 'published');
    END IF;
    RETURN ARRAY(
        SELECT DISTINCT source FROM embedding_assets.readers JOIN pg_roles ON rolname = role
        WHERE pg_has_role(session_user, pg_roles.oid, 'USAGE')
    );
END
$$;

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
    -- At least pgvector's own default. The stored one is measured with queries near stored rows, and may be 10; of real
    -- questions that found .87 to .90 of the ten nearest, 40 finds .965 to 1, in 0.1 to 0.7 ms more (12,000 texts).
    -- Under a filter more of what the scan comes by is dropped: with 40 .94 was found under one of 50 %, with 100 .98.
    PERFORM set_config(
        'hnsw.ef_search',
        least(greatest(live.ef_search, k, CASE WHEN coalesce(filter, '{}') = '{}' THEN 40 ELSE 100 END), 1000)::text,
        true
    );
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

-- The k chunks nearest to a vector of the live model by cosine distance, nearest first; equal distances in the order of
-- source, document and ordinal. `source` narrows to one source, `filter` to metadata that contains it (metadata @> filter).
-- Returns k rows whenever k exist: where a filter leaves the index too few, the table itself is searched.
--
-- relaxed_order, sorted after: with strict_order a scan drops what it finds late, and recall@10 fell to .918 under a
-- filter of 10 % where this has .965 in the same time (30,000 texts, 256 dimensions, ef_search 10 for both).
--
-- Volatile on purpose: each call then reads with a snapshot taken after the table's lock was granted, so that a
-- generation published meanwhile is seen whole.
CREATE OR REPLACE FUNCTION public.search(
    query vector, k integer, source text DEFAULT NULL, filter jsonb DEFAULT '{}'
) RETURNS SETOF embedding_assets.hit
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.ef_search = '40' -- set to the model's by search_terms; named here so that the caller's own value comes back
SET jit = off -- compiling takes longer than the search
AS $search$
DECLARE
    terms record;
BEGIN
    terms := embedding_assets.search_terms(query, k, source, filter);
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
        $query$, terms.distance, terms.conditions
    ) USING query, k, source, filter, terms.readable;
END
$search$;

DO $$
BEGIN
    CREATE TYPE embedding_assets.hybrid_hit AS (
        source text,
        document_id text,
        ordinal integer,
        content text,
        metadata jsonb,
        distance double precision,
        score double precision
    );
EXCEPTION WHEN duplicate_object THEN
    NULL;
END
$$;

-- The k chunks that stand highest in two rankings at once: by distance to a vector of the live model, as search() has
-- it, and by the words of query_text, as in a web search ("…" a phrase, or, - not). Fused by reciprocal rank: a chunk's
-- score is the sum of 1 / (60 + rank) over both (Cormack, Clarke and Büttcher, SIGIR 2009; 60 is theirs). Highest first.
--
-- Each ranking is read to 60 + 2 k: a chunk deeper in both has a score below 1 / (60 + k), which the first k of either
-- exceed. Of the chunks that contain the words the 500 nearest are ranked: ranking parses each again, some 30 µs.
CREATE OR REPLACE FUNCTION public.search_hybrid(
    query vector, query_text text, k integer, source text DEFAULT NULL, filter jsonb DEFAULT '{}'
) RETURNS SETOF embedding_assets.hybrid_hit
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.ef_search = '40'
SET jit = off
AS $search$
DECLARE
    terms record;
    language regconfig;
BEGIN
    SELECT surface.language INTO language FROM embedding_assets.surface;
    IF language IS NULL THEN
        RAISE EXCEPTION 'hybrid search is not enabled in this database'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Add hybrid: {language: english} to the settings and materialize, or use search().';
    END IF;
    IF query_text IS NULL THEN
        RAISE EXCEPTION 'hybrid search needs a query text' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    terms := embedding_assets.search_terms(query, k, source, filter);
    RETURN QUERY EXECUTE format(
        $query$
        WITH by_distance AS (
            SELECT *, row_number() OVER (ORDER BY distance, source, document_id, ordinal) AS place
            FROM public.search($1, 60 + 2 * $2, $3, $4)
        ), with_words AS MATERIALIZED (
            SELECT source, document_id, ordinal, content, metadata, %1$s AS distance
            FROM embedding_assets.chunks
            WHERE %2$s AND to_tsvector(%3$L::regconfig, content) @@ websearch_to_tsquery(%3$L::regconfig, $6)
            ORDER BY %1$s LIMIT 500
        ), by_words AS (
            SELECT *, row_number() OVER (
                ORDER BY ts_rank_cd(
                    to_tsvector(%3$L::regconfig, content), websearch_to_tsquery(%3$L::regconfig, $6)
                ) DESC, distance, source, document_id, ordinal
            ) AS place
            FROM with_words
        ), ranked AS (
            SELECT * FROM by_distance UNION ALL (SELECT * FROM by_words ORDER BY place LIMIT 60 + 2 * $2)
        )
        SELECT source, document_id, ordinal, min(content), (array_agg(metadata))[1], min(distance),
               sum(1 / (60 + place)::double precision) AS score
        FROM ranked GROUP BY source, document_id, ordinal
        ORDER BY score DESC, min(distance), source, document_id, ordinal LIMIT $2
        $query$, terms.distance, terms.conditions, language
    ) USING query, k, source, filter, terms.readable, query_text;
END
$search$;

REVOKE ALL ON FUNCTION
    public.search(vector, integer, text, jsonb), public.search_hybrid(vector, text, integer, text, jsonb) FROM PUBLIC;
