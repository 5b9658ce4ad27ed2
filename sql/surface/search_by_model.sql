-- search() and search_hybrid() that are told which model the query is a vector of, and refuse it where another one is
-- live: of models with equal dimensions nothing else tells them apart. An application asks live_model(), embeds the
-- question, and names the model; where it changed meanwhile there is an error, and never the rows of another model.
--
-- The name goes by a setting of this call, which search_terms compares where it reads which model is live: in one
-- statement with the slot that is searched. The setting from before comes back by hand, for a function's own SET takes a
-- superuser where no library knows the setting. No defaults, so that no call with four arguments has two candidates.

CREATE OR REPLACE FUNCTION public.search(query vector, k integer, source text, filter jsonb, model text)
RETURNS SETOF embedding_assets.hit
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    before text := coalesce(current_setting('embedding_assets.model', true), '');
BEGIN
    PERFORM pg_catalog.set_config('embedding_assets.model', coalesce(model, ''), true);
    RETURN QUERY SELECT * FROM public.search(query, k, source, filter);
    PERFORM pg_catalog.set_config('embedding_assets.model', before, true);
END
$$;

CREATE OR REPLACE FUNCTION public.search(query text, k integer, source text, filter jsonb, model text)
RETURNS SETOF embedding_assets.hit
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT hit FROM public.search(query::vector, k, source, filter, model) AS hit;
END;

CREATE OR REPLACE FUNCTION public.search_hybrid(
    query vector, query_text text, k integer, source text, filter jsonb, model text
) RETURNS SETOF embedding_assets.hybrid_hit
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    before text := coalesce(current_setting('embedding_assets.model', true), '');
BEGIN
    PERFORM pg_catalog.set_config('embedding_assets.model', coalesce(model, ''), true);
    RETURN QUERY SELECT * FROM public.search_hybrid(query, query_text, k, source, filter);
    PERFORM pg_catalog.set_config('embedding_assets.model', before, true);
END
$$;

CREATE OR REPLACE FUNCTION public.search_hybrid(
    query text, query_text text, k integer, source text, filter jsonb, model text
) RETURNS SETOF embedding_assets.hybrid_hit
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT hit FROM public.search_hybrid(query::vector, query_text, k, source, filter, model) AS hit;
END;

COMMENT ON FUNCTION public.search(vector, integer, text, jsonb, text) IS
    'search() with a vector of this model: an error where another one is live.';
COMMENT ON FUNCTION public.search(text, integer, text, jsonb, text) IS
    'The same with the query as text, such as ''[0.1, 0.2]''.';
COMMENT ON FUNCTION public.search_hybrid(vector, text, integer, text, jsonb, text) IS
    'search_hybrid() with a vector of this model: an error where another one is live.';
COMMENT ON FUNCTION public.search_hybrid(text, text, integer, text, jsonb, text) IS
    'The same with the query as text, such as ''[0.1, 0.2]''.';
