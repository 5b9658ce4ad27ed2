-- search_hybrid() of sources whose words are not indexed yet (published before words were kept, or under another
-- language): as it was until then, by reciprocal rank. A chunk's score is the sum of 1 / (60 + rank) over the ranking by
-- distance and that by words (Cormack, Clarke and Büttcher, SIGIR 2009; 60 is theirs). The next run indexes the words.
--
-- Each ranking is read to 60 + 2 k: a chunk deeper in both has a score below 1 / (60 + k), which the first k of either
-- exceed. Of the chunks that contain the words the 500 nearest are ranked: ranking parses each again, some 30 µs.
CREATE OR REPLACE FUNCTION embedding_assets.hybrid_by_rank(
    query vector, query_text text, k integer, source text, filter jsonb, language regconfig
) RETURNS SETOF embedding_assets.hybrid_hit
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $search$
DECLARE
    terms record;
BEGIN
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

COMMENT ON FUNCTION embedding_assets.hybrid_by_rank(vector, text, integer, text, jsonb, regconfig) IS
    'search_hybrid() of sources whose words are not indexed yet, by reciprocal rank.';
