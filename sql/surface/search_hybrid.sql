-- The k chunks that stand highest by distance to a vector of the live model, as search() has it, and by the words of
-- query_text at once, by BM25. Highest first. `fuse` says how.
CREATE OR REPLACE FUNCTION public.search_hybrid(
    query vector, query_text text, k integer, source text DEFAULT NULL, filter jsonb DEFAULT '{}'
) RETURNS SETOF embedding_assets.hybrid_hit
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $search$
BEGIN
    RETURN QUERY SELECT * FROM embedding_assets.fuse(query, query_text, k, source, filter, NULL);
END
$search$;

COMMENT ON FUNCTION public.search_hybrid(vector, text, integer, text, jsonb) IS
    'The k chunks (1 to 10000) that stand highest by distance to a vector of the live model and by the words of a text at '
    'once, read as a web search is. Needs hybrid: {language: ...} in the settings.';
