-- The k chunks that stand highest in two rankings at once: by distance to a vector of the live model, as search() has
-- it, and by the words of query_text, as in a web search ("…" a phrase, or, - not). Fused by reciprocal rank: a chunk's
-- score is the sum of 1 / (60 + rank) over both (Cormack, Clarke and Büttcher, SIGIR 2009; 60 is theirs). Highest first.
--
-- Each ranking is read to 60 + 2 k: a chunk deeper in both has a score below 1 / (60 + k), which the first k of either
-- exceed; from a k of 4,971 on it ends at 10,000, the most that search() gives. Of the chunks that contain the words the
-- 500 nearest are ranked: ranking parses each again, some 30 µs.
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
            FROM public.search($1, least(60 + 2 * $2, 10000), $3, $4)
        ), with_words AS MATERIALIZED (
            SELECT source, document_id, ordinal, content, metadata, %1$s AS distance, chunk_id
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
               sum(1 / (60 + place)::double precision) AS score, (array_agg(chunk_id))[1]
        FROM ranked GROUP BY source, document_id, ordinal
        ORDER BY score DESC, min(distance), source, document_id, ordinal LIMIT $2
        $query$, terms.distance, terms.conditions, language
    ) USING query, k, source, filter, terms.readable, query_text;
END
$search$;

COMMENT ON FUNCTION public.search_hybrid(vector, text, integer, text, jsonb) IS
    'The k chunks (1 to 10000) that stand highest by distance to a vector of the live model and by the words of a text at '
    'once, read as a web search is. Needs hybrid: {language: ...} in the settings.';
