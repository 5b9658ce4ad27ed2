-- search() for drivers that do not know pgvector's type: the query as an array of numbers, or as text.
--
-- One array type will do: arrays of reals, integers and numerics are cast to double precision[] by themselves, and with
-- more than one candidate Postgres could not choose for the latter two. The text is what a literal '[…]' and NULL, and a
-- parameter without a type, go to: among vector, array and text Postgres prefers text, and without it finds none unique.
--
-- BEGIN ATOMIC binds names and types now: no search_path is asked when it is called. The rights are the caller's. The
-- row is handed on whole, so that an attribute appended to its type comes along.

CREATE OR REPLACE FUNCTION public.search(
    query double precision[], k integer, source text DEFAULT NULL, filter jsonb DEFAULT '{}'
) RETURNS SETOF embedding_assets.hit
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT hit FROM public.search(query::vector, k, source, filter) AS hit;
END;

CREATE OR REPLACE FUNCTION public.search(
    query text, k integer, source text DEFAULT NULL, filter jsonb DEFAULT '{}'
) RETURNS SETOF embedding_assets.hit
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT hit FROM public.search(query::vector, k, source, filter) AS hit;
END;

COMMENT ON FUNCTION public.search(double precision[], integer, text, jsonb) IS
    'search() with the query as an array of numbers.';
COMMENT ON FUNCTION public.search(text, integer, text, jsonb) IS
    'search() with the query as text, such as ''[0.1, 0.2]''.';
