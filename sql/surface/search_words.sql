-- The k chunks that stand highest by the words of a text alone, highest first: what the words bring to search_hybrid(),
-- for whoever judges it. A chunk without any of the words is not among them.
CREATE OR REPLACE FUNCTION embedding_assets.search_words(query_text text, k integer, source text)
RETURNS TABLE (document_id text, ordinal integer, chunk_id uuid, score double precision)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $search$
DECLARE
    terms record;
BEGIN
    PERFORM FROM embedding_assets.chunks LIMIT 0; -- locked in the order in which publishing locks
    SELECT word_terms.* INTO terms FROM embedding_assets.surface, embedding_assets.word_terms(
        surface.language::regconfig, query_text, search_words.source, '{}', NULL
    );
    RETURN QUERY EXECUTE format(
        $query$
        WITH ranked AS MATERIALIZED (
            SELECT words.source, words.chunk_id, %1$s AS score FROM %2$s AS words
            ORDER BY score DESC, chunk_id LIMIT $2
        )
        SELECT document_id, ordinal, chunk_id, score FROM ranked JOIN embedding_assets.chunks USING (source, chunk_id)
        ORDER BY score DESC, document_id, ordinal
        $query$, terms.score, terms.candidates
    ) USING NULL, k, search_words.source, NULL, NULL, terms.lexemes, terms.weights, terms.condition;
END
$search$;

COMMENT ON FUNCTION embedding_assets.search_words(text, integer, text) IS
    'The k chunks that stand highest by the words of a text alone.';
