-- search_hybrid() for drivers that do not know pgvector's type, as search_overloads.sql has it for search().

CREATE OR REPLACE FUNCTION public.search_hybrid(
    query double precision[], query_text text, k integer, source text DEFAULT NULL, filter jsonb DEFAULT '{}'
) RETURNS SETOF embedding_assets.hybrid_hit
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT hit FROM public.search_hybrid(query::vector, query_text, k, source, filter) AS hit;
END;

CREATE OR REPLACE FUNCTION public.search_hybrid(
    query text, query_text text, k integer, source text DEFAULT NULL, filter jsonb DEFAULT '{}'
) RETURNS SETOF embedding_assets.hybrid_hit
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT hit FROM public.search_hybrid(query::vector, query_text, k, source, filter) AS hit;
END;

COMMENT ON FUNCTION public.search_hybrid(double precision[], text, integer, text, jsonb) IS
    'search_hybrid() with the query as an array of numbers.';
COMMENT ON FUNCTION public.search_hybrid(text, text, integer, text, jsonb) IS
    'search_hybrid() with the query as text, such as ''[0.1, 0.2]''.';
