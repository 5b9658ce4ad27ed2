-- How unlikely a score is so many standard deviations above the mean, by chance: -ln P of a logistic distribution with that
-- mean and deviation. Far above it grows evenly; at the mean and below, where nothing tells one chunk from another, it
-- says little. Beyond the bounds, exp() would overflow or underflow.
CREATE OR REPLACE FUNCTION embedding_assets.standing(deviations double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE
RETURN ln(1 + exp(greatest(-100, least(100, pi() / sqrt(3::double precision) * deviations))));

COMMENT ON FUNCTION embedding_assets.standing(double precision) IS
    'How unlikely a score is so many standard deviations above the mean: -ln of its logistic tail.';

-- search_hybrid(), with a weight of the vector where one is to be tried; NULL for the one that holds.
--
-- Both are made comparable by how unlikely such a standing is among the hundred best of their ranking: standing() of the
-- standard deviations from the mean of these (a chunk without the words counts as 0, one that is farther than the
-- hundredth as that). A chunk's score is the mean of both, the vector's with the weight that was chosen for the source and
-- the live model (table fusion), else 0.6: a convex combination of normalised scores, which Bruch, Gai and Ingber (ACM
-- TOIS 42, 2023) found to be better than ranks, and to need few questions to be chosen. So normalised one weight does for
-- a weak model and a good one, whose best hits stand out more (docs/decisions/0016).
--
-- A phrase narrows what the words rank. What is excluded is in no hit, so that fewer than k may come.
CREATE OR REPLACE FUNCTION embedding_assets.fuse(
    query vector, query_text text, k integer, source text, filter jsonb, weight double precision
) RETURNS SETOF embedding_assets.hybrid_hit
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET hnsw.ef_search = '40'
SET jit = off
AS $search$
DECLARE
    terms record;
    by_words record;
    language regconfig;
    chosen double precision;
    indexed boolean;
    same text := 'words.source = nearest.source AND words.chunk_id = nearest.chunk_id';
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
    PERFORM FROM embedding_assets.chunks LIMIT 0; -- locked in the order in which publishing locks
    SELECT bool_and(generations.language IS NOT DISTINCT FROM surface.language), avg(coalesce(fusion.weight, 0.6))
    INTO indexed, chosen
    FROM embedding_assets.surface, embedding_assets.generations LEFT JOIN embedding_assets.fusion
        ON fusion.source = generations.source AND model = (SELECT name FROM embedding_assets.models WHERE live)
    WHERE state = 'published' AND (fuse.source IS NULL OR generations.source = fuse.source)
    AND (terms.readable IS NULL OR generations.source = ANY (terms.readable));
    IF NOT indexed THEN
        RETURN QUERY SELECT * FROM embedding_assets.hybrid_by_rank(query, query_text, k, source, filter, language);
        RETURN;
    END IF;
    IF source IS NOT NULL THEN
        same := same || ' AND words.source = $3'; -- its table alone is planned for
    END IF;
    by_words := embedding_assets.word_terms(language, query_text, source, filter, terms.readable);
    RETURN QUERY EXECUTE format(
        $query$
        WITH nearest AS MATERIALIZED (
            SELECT source, document_id, ordinal, content, metadata, distance, chunk_id
            FROM public.search($1, greatest($2, 100), $3, $4)
        ), with_words AS MATERIALIZED (
            SELECT words.source, words.chunk_id, %2$s AS bm25 FROM %3$s AS words
            ORDER BY bm25 DESC, source, chunk_id LIMIT greatest($2, 100)
        ), found AS (
            SELECT nearest.*, (SELECT %6$s FROM embedding_assets.words WHERE %7$s) AS bm25 -- one by one: a join reads all
            FROM nearest WHERE %4$s
            UNION ALL
            SELECT source, document_id, ordinal, content, metadata, %1$s, chunk_id, bm25
            FROM with_words JOIN embedding_assets.chunks USING (source, chunk_id)
            WHERE %5$s AND NOT EXISTS (
                SELECT FROM nearest WHERE nearest.source = chunks.source AND nearest.chunk_id = chunks.chunk_id
            )
        ), near AS (
            SELECT avg(distance) AS mean, max(distance) AS worst, nullif(stddev_pop(distance), 0) AS spread
            FROM (SELECT distance FROM nearest ORDER BY distance LIMIT 100) AS best
        ), told AS (
            SELECT mean, nullif(sqrt(greatest(squares - mean * mean, 0)), 0) AS spread FROM (
                SELECT sum(bm25) / best AS mean, sum(bm25 * bm25) / best AS squares
                FROM (SELECT bm25 FROM with_words ORDER BY bm25 DESC LIMIT 100) AS with_words,
                     (SELECT least(count(*), 100)::double precision AS best FROM nearest) AS counted
                GROUP BY best
            ) AS sums
        )
        SELECT source, document_id, ordinal, content, metadata, distance,
               $9 * embedding_assets.standing(coalesce((near.mean - least(distance, near.worst)) / near.spread, 0))
               + (1 - $9) * embedding_assets.standing(coalesce((coalesce(bm25, 0) - told.mean) / told.spread, 0))
               AS score, chunk_id
        FROM found CROSS JOIN near LEFT JOIN told ON true
        ORDER BY score DESC, distance, source, document_id, ordinal LIMIT $2
        $query$,
        terms.distance, by_words.score, by_words.candidates,
        CASE WHEN by_words.allowed IS NULL THEN 'true'
             ELSE format('(SELECT words.words @@ $10 FROM embedding_assets.words WHERE %s)', same) END, terms.conditions,
        CASE WHEN by_words.condition IS NULL THEN by_words.score
             ELSE format('CASE WHEN words.words @@ $8 THEN %s END', by_words.score) END, same
    ) USING query, k, source, filter, terms.readable, by_words.lexemes, by_words.weights, by_words.condition,
        coalesce(weight, chosen), by_words.allowed;
END
$search$;

COMMENT ON FUNCTION embedding_assets.fuse(vector, text, integer, text, jsonb, double precision) IS
    'search_hybrid() with a weight of the vector between 0 and 1; NULL for the one that holds.';
