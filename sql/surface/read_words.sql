-- A question's lexemes, and the conditions that it sets, read as a web search is: "…" is a phrase that has to be there,
-- - before a word or a phrase keeps it out, `or` stands between alternatives. Any word will do: a condition there is only
-- where a phrase or an exclusion sets one, and each alternative without a phrase asks for one of its words then.
--
-- `condition` is for what the words rank; `allowed` for every hit, and of exclusions alone. Who asks what "bad
-- interpreter" means has an answer that may word it otherwise, and the vector finds it: under the whole condition a
-- fifth of what hybrid search gains on the questions of bench/faq.py was lost, for the 4 % of them that quote something.
--
-- Not websearch_to_tsquery() as a whole: it wants all words, and a word such as e-mail looks like a phrase in it.
CREATE OR REPLACE FUNCTION embedding_assets.read_words(
    language regconfig, query_text text, OUT lexemes text[], OUT condition tsquery, OUT allowed tsquery
) LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET client_min_messages = 'warning' -- a notice for each word that is none
AS $$
DECLARE
    piece text[];
    found text[];
    phrases tsquery := '';
    excluded tsquery := '';
    any_word tsquery := '';
    is_set boolean := false;
    is_open boolean := false;
BEGIN
    lexemes := tsvector_to_array(to_tsvector(language, query_text));
    IF query_text !~ '["]|(^|\s)-' THEN
        RETURN;
    END IF;
    lexemes := '{}';
    condition := '';
    allowed := '';
    FOR piece IN
        SELECT regexp_matches(query_text, '((?:-\s*)*)("[^"]*"?|[^\s"]+)', 'g') UNION ALL SELECT ARRAY['', 'or']
    LOOP
        IF lower(piece[2]) = 'or' THEN
            condition := condition || ((CASE WHEN numnode(phrases) > 0 THEN phrases ELSE any_word END) && excluded);
            is_open := is_open OR numnode(excluded) = 0 AND numnode(phrases) + numnode(any_word) > 0;
            allowed := allowed || excluded;
            phrases := '';
            excluded := '';
            any_word := '';
        ELSIF length(translate(piece[1], E' \t\r\n\f\v', '')) % 2 = 1 THEN
            IF numnode(phraseto_tsquery(language, piece[2])) > 0 THEN
                excluded := excluded && !! phraseto_tsquery(language, piece[2]);
                is_set := true;
            END IF;
        ELSE
            found := tsvector_to_array(to_tsvector(language, piece[2]));
            lexemes := lexemes || found;
            IF piece[2] LIKE '"%' THEN
                phrases := phrases && phraseto_tsquery(language, piece[2]);
                is_set := is_set OR numnode(phrases) > 0;
            ELSE
                any_word := any_word || embedding_assets.as_tsquery(found, '|');
            END IF;
        END IF;
    END LOOP;
    lexemes := ARRAY(SELECT DISTINCT unnest(lexemes));
    IF NOT is_set OR numnode(condition) = 0 THEN
        condition := NULL;
    END IF;
    IF is_open OR numnode(allowed) = 0 THEN
        allowed := NULL;
    END IF;
END
$$;

COMMENT ON FUNCTION embedding_assets.read_words(regconfig, text) IS
    'A question''s lexemes, the condition that its phrases and exclusions set, and that of exclusions alone; NULL where none is set.';
