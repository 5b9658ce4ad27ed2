-- What ranks chunks by the words of a question: BM25 (Robertson and Zaragoza, 2009; k1 1.2, b 0.75) with the lengths and
-- the documents of what is searched, one source or all that may be read.
--
-- It words the rest for the caller: `candidates` is a relation of the rows of embedding_assets.words to rank, `score`
-- their BM25. Both refer to source $3, filter $4, readable sources $5, and what else it gives: $6 lexemes, $7 weights,
-- $8 condition. `allowed` is the condition on every hit.
--
-- Time is bounded by what is read. Of a question's first 10,000 characters the 32 rarest lexemes count. Candidates are
-- the chunks with the rarest of these, as many lexemes as have 5,000 chunks together: the others have too little weight
-- to bring another chunk to the top, and count for whoever is there. (Of 60,000 real texts 99.4 % of the ten best are
-- those of all candidates then; 10,000 have all of them at 1.7 times the CPU.) Where the rarest alone has more than that,
-- 5,000 that have all the lexemes and 5,000 of those with the rarest are ranked.
CREATE OR REPLACE FUNCTION embedding_assets.word_terms(
    language regconfig, query_text text, source text, filter jsonb, readable text[],
    OUT score text, OUT candidates text, OUT lexemes tsquery[], OUT weights double precision[], OUT condition tsquery,
    OUT allowed tsquery
) LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET client_min_messages = 'warning' -- a notice for each word that is none
AS $$
DECLARE
    most CONSTANT integer := 5000;
    asked record := embedding_assets.read_words(language, left(query_text, 10000));
    chunks double precision;
    average double precision;
    kept record;
    rarest tsquery;
    conditions text;
BEGIN
    condition := asked.condition;
    allowed := asked.allowed;
    SELECT sum(documents), sum(lexemes.occurrences) / nullif(sum(documents), 0)::double precision INTO chunks, average
    FROM embedding_assets.lexemes
    WHERE lexeme = '' AND (word_terms.source IS NULL OR lexemes.source = word_terms.source)
    AND (readable IS NULL OR lexemes.source = ANY (readable));
    -- A lexeme that nothing has takes no part, and one that half of all have or more hardly any: BM25's own weight.
    SELECT array_agg(lexeme ORDER BY documents, lexeme) AS words,
           array_agg(documents ORDER BY documents, lexeme) AS documents,
           array_agg(embedding_assets.as_tsquery(ARRAY[lexeme], '|') ORDER BY documents, lexeme) AS queries,
           array_agg(2.2 * ln(1 + (chunks - documents + 0.5) / (documents + 0.5)) ORDER BY documents, lexeme) AS weights
    INTO kept
    FROM (
        SELECT lexeme, sum(documents)::double precision AS documents FROM embedding_assets.lexemes
        WHERE lexeme = ANY (asked.lexemes) AND documents > 0
        AND (word_terms.source IS NULL OR lexemes.source = word_terms.source)
        AND (readable IS NULL OR lexemes.source = ANY (readable))
        GROUP BY lexeme ORDER BY 2, lexeme LIMIT 32
    ) AS rarest_first;
    lexemes := coalesce(kept.queries, '{}');
    weights := coalesce(kept.weights, '{}');
    IF lexemes = '{}' THEN
        score := '0::double precision';
        candidates := '(SELECT * FROM embedding_assets.words WHERE false)';
        RETURN;
    END IF;
    -- weight * tf / (tf + norm), so worded that tf, which takes the time, is asked for once.
    SELECT string_agg(
        format('$7[%1$s] * (1 - %2$s / (%2$s + embedding_assets.occurrences(words.words, $6[%1$s])))', place,
               format('(%L::double precision + %L::double precision * words.length)', 0.3, 0.9 / average)), ' + ')
    INTO score FROM generate_subscripts(lexemes, 1) AS place;
    conditions := CASE WHEN word_terms.source IS NULL THEN '' ELSE ' AND words.source = $3' END
        || CASE WHEN readable IS NULL THEN '' ELSE ' AND words.source = ANY ($5)' END
        || CASE WHEN condition IS NULL THEN '' ELSE ' AND words.words @@ $8' END
        || CASE WHEN coalesce(filter, '{}') = '{}' THEN '' ELSE
            ' AND EXISTS (SELECT FROM embedding_assets.chunks WHERE chunks.source = words.source'
            ' AND chunks.chunk_id = words.chunk_id AND metadata @> $4)' END;
    SELECT embedding_assets.as_tsquery(array_agg(lexeme), '|') INTO rarest FROM (
        SELECT lexeme, sum(documents) OVER (ORDER BY place) AS up_to, place
        FROM unnest(kept.words, kept.documents) WITH ORDINALITY AS each (lexeme, documents, place)
    ) AS summed WHERE place = 1 OR up_to <= most;
    candidates := CASE WHEN kept.documents[1] <= most THEN
        format('(SELECT * FROM embedding_assets.words WHERE words.words @@ %L::tsquery%s)', rarest, conditions)
    ELSE
        format(
            '((SELECT * FROM embedding_assets.words WHERE words.words @@ %1$L::tsquery%3$s LIMIT %4$s) UNION ALL '
            '(SELECT * FROM embedding_assets.words WHERE words.words @@ %2$L::tsquery'
            ' AND NOT words.words @@ %1$L::tsquery%3$s LIMIT %4$s))',
            embedding_assets.as_tsquery(kept.words, '&'), rarest, conditions, most)
    END;
END
$$;

COMMENT ON FUNCTION embedding_assets.word_terms(regconfig, text, text, jsonb, text[]) IS
    'What ranks chunks by the words of a question: words the query for search_hybrid() and search_words().';
