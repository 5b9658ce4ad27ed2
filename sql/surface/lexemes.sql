-- Lexemes as a query for any of them ('|') or all ('&'), each as it is: quoted, and not parsed again.
CREATE OR REPLACE FUNCTION embedding_assets.as_tsquery(lexemes text[], operator text) RETURNS tsquery
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT coalesce(
        string_agg('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''', ' ' || operator || ' '), ''
    )::tsquery
    FROM unnest(lexemes) AS lexeme;
END;

COMMENT ON FUNCTION embedding_assets.as_tsquery(text[], text) IS 'Lexemes as a query for any of them or all.';

-- How often a chunk has a lexeme. Postgres tells a lexeme's positions only with all others (unnest: 15 µs a chunk); its
-- ts_rank() takes 0.3 µs, and of one lexeme n times it is the sum of the first n of 1/1, 1/4, 1/9, … as a share of the
-- whole series, 1.6449…. What is left of the series after n of them is the inverse of n + 1/2 + 1/(12 n) or so, so that
-- rounding gives n again, up to the 256 that a text search vector holds (a test goes through them).
CREATE OR REPLACE FUNCTION embedding_assets.occurrences(words tsvector, lexeme tsquery) RETURNS double precision
LANGUAGE sql IMMUTABLE
RETURN round(
    1 / (1.64493406685::double precision * (1 - ts_rank('{1, 1, 1, 1}'::real[], words, lexeme)::double precision))
    - 0.5::double precision
);

COMMENT ON FUNCTION embedding_assets.occurrences(tsvector, tsquery) IS
    'How often a text search vector has the one lexeme of a query.';
