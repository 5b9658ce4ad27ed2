-- What a region's database is, before models are bound and sources are loaded: written by `make schema`, for reading.
-- A database comes to this by sql/migrations and sql/surface; a test builds one each way and compares them. The roles
-- are made by sql/roles.sql. Binding the models adds embedding_v1 and embedding_v2 to chunks, and live_chunks shows the
-- one that is live. What yoyo keeps about the migrations is left out.

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

CREATE SCHEMA embedding_assets;

ALTER SCHEMA embedding_assets OWNER TO embedding_ingest;

COMMENT ON SCHEMA embedding_assets IS 'What embedding-assets keeps in a region''s database. Applications use search(), search_hybrid(), live_model() and live_chunks, in the schema public.';

CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;

COMMENT ON EXTENSION vector IS 'vector data type and ivfflat and hnsw access methods';

CREATE TYPE embedding_assets.hit AS (
	source text,
	document_id text,
	ordinal integer,
	content text,
	metadata jsonb,
	distance double precision,
	chunk_id uuid
);

ALTER TYPE embedding_assets.hit OWNER TO embedding_ingest;

COMMENT ON TYPE embedding_assets.hit IS 'A chunk that search() found.';

COMMENT ON COLUMN embedding_assets.hit.source IS 'The source of its document.';

COMMENT ON COLUMN embedding_assets.hit.document_id IS 'Its document, by the id that the source gives it.';

COMMENT ON COLUMN embedding_assets.hit.ordinal IS 'Its place among the document''s chunks, from 0.';

COMMENT ON COLUMN embedding_assets.hit.content IS 'Its text.';

COMMENT ON COLUMN embedding_assets.hit.metadata IS 'The document''s metadata, a JSON object.';

COMMENT ON COLUMN embedding_assets.hit.distance IS 'Cosine distance to the query: 0 the same direction, 2 the opposite.';

COMMENT ON COLUMN embedding_assets.hit.chunk_id IS 'Its id, the same as in live_chunks.';

CREATE TYPE embedding_assets.hybrid_hit AS (
	source text,
	document_id text,
	ordinal integer,
	content text,
	metadata jsonb,
	distance double precision,
	score double precision,
	chunk_id uuid
);

ALTER TYPE embedding_assets.hybrid_hit OWNER TO embedding_ingest;

COMMENT ON TYPE embedding_assets.hybrid_hit IS 'A chunk that search_hybrid() found.';

COMMENT ON COLUMN embedding_assets.hybrid_hit.source IS 'The source of its document.';

COMMENT ON COLUMN embedding_assets.hybrid_hit.document_id IS 'Its document, by the id that the source gives it.';

COMMENT ON COLUMN embedding_assets.hybrid_hit.ordinal IS 'Its place among the document''s chunks, from 0.';

COMMENT ON COLUMN embedding_assets.hybrid_hit.content IS 'Its text.';

COMMENT ON COLUMN embedding_assets.hybrid_hit.metadata IS 'The document''s metadata, a JSON object.';

COMMENT ON COLUMN embedding_assets.hybrid_hit.distance IS 'Cosine distance to the query: 0 the same direction, 2 the opposite.';

COMMENT ON COLUMN embedding_assets.hybrid_hit.score IS 'How high it stands in both rankings together: the higher the better, among the hits of one search.';

COMMENT ON COLUMN embedding_assets.hybrid_hit.chunk_id IS 'Its id, the same as in live_chunks.';

CREATE TYPE embedding_assets.live_model AS (
	name text,
	dimensions integer,
	provider text,
	slot text,
	endpoint jsonb
);

ALTER TYPE embedding_assets.live_model OWNER TO embedding_ingest;

COMMENT ON TYPE embedding_assets.live_model IS 'The model that a question has to be embedded with.';

COMMENT ON COLUMN embedding_assets.live_model.name IS 'The model''s name at its provider.';

COMMENT ON COLUMN embedding_assets.live_model.dimensions IS 'The length of its vectors.';

COMMENT ON COLUMN embedding_assets.live_model.provider IS 'Who computes them: local, or an endpoint as openai has it.';

COMMENT ON COLUMN embedding_assets.live_model.slot IS 'The model version that is live: v1 or v2.';

COMMENT ON COLUMN embedding_assets.live_model.endpoint IS 'How the endpoint is asked for it, without secrets: name, base_url, the variable of the key. NULL for a bundled model.';

CREATE FUNCTION embedding_assets.as_tsquery(lexemes text[], operator text) RETURNS tsquery
    LANGUAGE sql IMMUTABLE
    BEGIN ATOMIC
 SELECT (COALESCE(string_agg(((''''::text || replace(replace(lexeme.lexeme, '\'::text, '\\'::text), ''''::text, ''''''::text)) || ''''::text), ((' '::text || as_tsquery.operator) || ' '::text)), ''::text))::tsquery AS "coalesce"
    FROM unnest(as_tsquery.lexemes) lexeme(lexeme);
END;

ALTER FUNCTION embedding_assets.as_tsquery(lexemes text[], operator text) OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.as_tsquery(lexemes text[], operator text) IS 'Lexemes as a query for any of them or all.';

CREATE FUNCTION embedding_assets.fuse(query public.vector, query_text text, k integer, source text, filter jsonb, weight double precision) RETURNS SETOF embedding_assets.hybrid_hit
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "hnsw.ef_search" TO '40'
    SET jit TO 'off'
    AS $_$
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
$_$;

ALTER FUNCTION embedding_assets.fuse(query public.vector, query_text text, k integer, source text, filter jsonb, weight double precision) OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.fuse(query public.vector, query_text text, k integer, source text, filter jsonb, weight double precision) IS 'search_hybrid() with a weight of the vector between 0 and 1; NULL for the one that holds.';

CREATE FUNCTION embedding_assets.hybrid_by_rank(query public.vector, query_text text, k integer, source text, filter jsonb, language regconfig) RETURNS SETOF embedding_assets.hybrid_hit
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

ALTER FUNCTION embedding_assets.hybrid_by_rank(query public.vector, query_text text, k integer, source text, filter jsonb, language regconfig) OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.hybrid_by_rank(query public.vector, query_text text, k integer, source text, filter jsonb, language regconfig) IS 'search_hybrid() of sources whose words are not indexed yet, by reciprocal rank.';

CREATE FUNCTION embedding_assets.occurrences(words tsvector, lexeme tsquery) RETURNS double precision
    LANGUAGE sql IMMUTABLE
    RETURN round((((1)::double precision / ((1.64493406685)::double precision * ((1)::double precision - (ts_rank('{1,1,1,1}'::real[], words, lexeme))::double precision))) - (0.5)::double precision));

ALTER FUNCTION embedding_assets.occurrences(words tsvector, lexeme tsquery) OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.occurrences(words tsvector, lexeme tsquery) IS 'How often a text search vector has the one lexeme of a query.';

CREATE FUNCTION embedding_assets.read_words(language regconfig, query_text text, OUT lexemes text[], OUT condition tsquery, OUT allowed tsquery) RETURNS record
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET client_min_messages TO 'warning'
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

ALTER FUNCTION embedding_assets.read_words(language regconfig, query_text text, OUT lexemes text[], OUT condition tsquery, OUT allowed tsquery) OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.read_words(language regconfig, query_text text, OUT lexemes text[], OUT condition tsquery, OUT allowed tsquery) IS 'A question''s lexemes, the condition that its phrases and exclusions set, and that of exclusions alone; NULL where none is set.';

CREATE FUNCTION embedding_assets.readable_sources() RETURNS text[]
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF pg_has_role(
        session_user, (SELECT relowner FROM pg_class WHERE oid = 'embedding_assets.chunks'::regclass), 'USAGE'
    ) THEN
        RETURN ARRAY(SELECT source FROM embedding_assets.generations WHERE state = 'published');
    END IF;
    RETURN ARRAY(
        SELECT DISTINCT source FROM embedding_assets.readers JOIN pg_roles ON rolname = role
        WHERE pg_has_role(session_user, pg_roles.oid, 'USAGE')
    );
END
$$;

ALTER FUNCTION embedding_assets.readable_sources() OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.readable_sources() IS 'The sources that this session may read, by the role that it logged in as; row-level security asks it.';

CREATE FUNCTION embedding_assets.search_terms(query public.vector, k integer, source text, filter jsonb, OUT distance text, OUT conditions text, OUT readable text[]) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    live record;
    least_ef integer;
    -- Where pgvector lives, with a dot: its type's name is qualified under this search_path.
    extension text := left(pg_typeof(query)::text, -length('vector'));
BEGIN
    SELECT slot, name, dimensions, ef_search,
           (SELECT atttypid::regtype FROM pg_attribute
            WHERE attrelid = 'embedding_assets.chunks'::regclass AND attname = 'embedding_' || slot) AS type,
           (SELECT relrowsecurity FROM pg_class WHERE oid = 'embedding_assets.chunks'::regclass) AS narrowed
    INTO live FROM embedding_assets.models WHERE models.live;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this database has no live model yet'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Materialize pgvector_table for this region.';
    END IF;
    IF live.name <> coalesce(nullif(current_setting('embedding_assets.model', true), ''), live.name) THEN
        RAISE EXCEPTION 'the query was embedded with %, the live model is % (%)',
            current_setting('embedding_assets.model'), live.name, live.slot
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Embed the query with the live model.';
    END IF;
    IF query IS NULL THEN
        RAISE EXCEPTION 'search needs a query vector, not NULL' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'search needs a k from 1 to 10000, not %', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'To read more rows than that, use the view live_chunks.';
    END IF;
    IF cardinality(query::real[]) <> live.dimensions THEN
        RAISE EXCEPTION 'the query has % dimensions, the live model % (%) has %',
            cardinality(query::real[]), live.name, live.slot, live.dimensions
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Embed the query with the live model.';
    END IF;
    IF 0 = ALL (query::real[]) THEN -- its distance to anything is NaN, and an index finds nothing by it
        RAISE EXCEPTION 'the query is a vector of zeros, which has no direction'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'A model gives it for a text without words: ask another one.';
    END IF;
    IF jsonb_typeof(filter) <> 'object' THEN -- metadata are objects, and contain nothing else
        RAISE EXCEPTION 'the filter is of type %, not an object', jsonb_typeof(filter)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Write it as {"field": value}.';
    END IF;
    -- The stored one is measured with queries about the source itself, and without a filter. A question about another of
    -- several sources found .90 with 40 and .99 with 120. Under a filter more of what the scan comes by is dropped: under
    -- one of 10 % short questions found .96 with 100 and .98 with 200, in 2.5 ms both.
    least_ef := CASE
        WHEN coalesce(filter, '{}') <> '{}' THEN 200
        WHEN (SELECT count(*) FROM embedding_assets.generations WHERE state = 'published') > 1 THEN 100
        ELSE 1
    END;
    PERFORM set_config('hnsw.ef_search', least(greatest(live.ef_search, k, least_ef), 1000)::text, true);
    distance := format('embedding_%s OPERATOR(%s<=>) $1::%s', live.slot, extension, live.type);
    -- Conditions that say nothing are left out: the planner would take each for a narrow one.
    conditions := format('embedding_%s IS NOT NULL', live.slot)
        || CASE WHEN source IS NULL THEN '' ELSE ' AND source = $3' END
        || CASE WHEN coalesce(filter, '{}') = '{}' THEN '' ELSE ' AND metadata @> $4' END;
    -- A condition of ours, not the policy: under a policy no index may serve @> and @@, which are not leakproof.
    IF live.narrowed THEN
        readable := embedding_assets.readable_sources();
        conditions := conditions || ' AND source = ANY ($5)';
    END IF;
END
$_$;

ALTER FUNCTION embedding_assets.search_terms(query public.vector, k integer, source text, filter jsonb, OUT distance text, OUT conditions text, OUT readable text[]) OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.search_terms(query public.vector, k integer, source text, filter jsonb, OUT distance text, OUT conditions text, OUT readable text[]) IS 'What search() and search_hybrid() have in common: checks the arguments and words the query.';

CREATE FUNCTION embedding_assets.search_words(query_text text, k integer, source text) RETURNS TABLE(document_id text, ordinal integer, chunk_id uuid, score double precision)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET jit TO 'off'
    AS $_$
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
$_$;

ALTER FUNCTION embedding_assets.search_words(query_text text, k integer, source text) OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.search_words(query_text text, k integer, source text) IS 'The k chunks that stand highest by the words of a text alone.';

CREATE FUNCTION embedding_assets.show_live_model() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    EXECUTE (
        SELECT format(
            $view$
            CREATE OR REPLACE VIEW public.live_chunks AS
            SELECT source, document_id, ordinal, content, metadata, %1$s::%2$s.vector AS embedding,
                   chunk_id, start_offset, end_offset, %1$s::%2$s.halfvec AS embedding_halfvec
            FROM embedding_assets.chunks WHERE %1$s IS NOT NULL
            $view$,
            coalesce('embedding_' || (SELECT slot FROM embedding_assets.models WHERE live), format('NULL::%s.vector', nspname)),
            nspname
        ) FROM (SELECT extnamespace::regnamespace AS nspname FROM pg_extension WHERE extname = 'vector') AS pgvector
    );
    COMMENT ON VIEW public.live_chunks IS
        'Every chunk that search() can find, with its vector of the live model. Follows the live model.';
    COMMENT ON COLUMN public.live_chunks.source IS 'The source of its document.';
    COMMENT ON COLUMN public.live_chunks.document_id IS 'Its document, by the id that the source gives it.';
    COMMENT ON COLUMN public.live_chunks.ordinal IS 'Its place among the document''s chunks, from 0.';
    COMMENT ON COLUMN public.live_chunks.content IS 'Its text.';
    COMMENT ON COLUMN public.live_chunks.metadata IS 'The document''s metadata, a JSON object.';
    COMMENT ON COLUMN public.live_chunks.embedding IS
        'Its vector, of length 1. An index serves ORDER BY embedding <=> query LIMIT k, unless the model keeps halfvec.';
    COMMENT ON COLUMN public.live_chunks.chunk_id IS 'Its id.';
    COMMENT ON COLUMN public.live_chunks.start_offset IS 'Where it begins in the document''s text, in characters.';
    COMMENT ON COLUMN public.live_chunks.end_offset IS 'Where it ends there; the character at this offset is not in it.';
    COMMENT ON COLUMN public.live_chunks.embedding_halfvec IS
        'Its vector in 2-byte floats; the index of a model that keeps halfvec serves an order by this one.';
END
$_$;

ALTER FUNCTION embedding_assets.show_live_model() OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.show_live_model() IS 'Makes the view live_chunks for the model that is live; the pipeline calls it when that changes.';

CREATE FUNCTION embedding_assets.standing(deviations double precision) RETURNS double precision
    LANGUAGE sql IMMUTABLE
    RETURN ln(((1)::double precision + exp(GREATEST(('-100'::integer)::double precision, LEAST((100)::double precision, ((pi() / sqrt((3)::double precision)) * deviations))))));

ALTER FUNCTION embedding_assets.standing(deviations double precision) OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.standing(deviations double precision) IS 'How unlikely a score is so many standard deviations above the mean: -ln of its logistic tail.';

CREATE FUNCTION embedding_assets.word_terms(language regconfig, query_text text, source text, filter jsonb, readable text[], OUT score text, OUT candidates text, OUT lexemes tsquery[], OUT weights double precision[], OUT condition tsquery, OUT allowed tsquery) RETURNS record
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET client_min_messages TO 'warning'
    AS $_$
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
$_$;

ALTER FUNCTION embedding_assets.word_terms(language regconfig, query_text text, source text, filter jsonb, readable text[], OUT score text, OUT candidates text, OUT lexemes tsquery[], OUT weights double precision[], OUT condition tsquery, OUT allowed tsquery) OWNER TO embedding_ingest;

COMMENT ON FUNCTION embedding_assets.word_terms(language regconfig, query_text text, source text, filter jsonb, readable text[], OUT score text, OUT candidates text, OUT lexemes tsquery[], OUT weights double precision[], OUT condition tsquery, OUT allowed tsquery) IS 'What ranks chunks by the words of a question: words the query for search_hybrid() and search_words().';

CREATE FUNCTION public.live_model() RETURNS embedding_assets.live_model
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    found_model embedding_assets.live_model;
BEGIN
    SELECT name, dimensions, provider, slot, endpoint INTO found_model FROM embedding_assets.models WHERE live;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this database has no live model yet'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Materialize pgvector_table for this region.';
    END IF;
    RETURN found_model;
END
$$;

ALTER FUNCTION public.live_model() OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.live_model() IS 'The live model: embed a question with it, and search() can compare. Changes when another model version becomes live.';

CREATE FUNCTION public.search(query public.vector, k integer, source text DEFAULT NULL::text, filter jsonb DEFAULT '{}'::jsonb) RETURNS SETOF embedding_assets.hit
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "hnsw.iterative_scan" TO 'relaxed_order'
    SET "hnsw.ef_search" TO '40'
    SET jit TO 'off'
    AS $_$
DECLARE
    terms record;
BEGIN
    terms := embedding_assets.search_terms(query, k, source, filter);
    RETURN QUERY EXECUTE format(
        $query$
        WITH by_index AS MATERIALIZED (
            SELECT source, document_id, ordinal, content, metadata, %1$s AS distance, chunk_id
            FROM embedding_assets.chunks WHERE %2$s ORDER BY %1$s LIMIT $2
        )
        SELECT * FROM by_index WHERE (SELECT count(*) FROM by_index) = $2
        ORDER BY distance + 0, source, document_id, ordinal -- + 0: else Postgres takes by_index for sorted
        $query$, terms.distance, terms.conditions
    ) USING query, k, source, filter, terms.readable;
    IF FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format(
        $query$
        WITH by_table AS (
            SELECT source, document_id, ordinal, content, metadata, %1$s AS distance, chunk_id
            FROM embedding_assets.chunks WHERE %2$s ORDER BY (%1$s) + 0 LIMIT $2 -- + 0: not by the index
        )
        SELECT * FROM by_table ORDER BY distance, source, document_id, ordinal
        $query$, terms.distance, terms.conditions
    ) USING query, k, source, filter, terms.readable;
END
$_$;

ALTER FUNCTION public.search(query public.vector, k integer, source text, filter jsonb) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search(query public.vector, k integer, source text, filter jsonb) IS 'The k chunks (1 to 10000) nearest to a vector of the live model, nearest first; of one source, and with metadata that contain a filter, where these are given. live_model() says which model that is.';

CREATE FUNCTION public.search(query double precision[], k integer, source text DEFAULT NULL::text, filter jsonb DEFAULT '{}'::jsonb) RETURNS SETOF embedding_assets.hit
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT hit.*::embedding_assets.hit AS hit
    FROM public.search((search.query)::public.vector, search.k, search.source, search.filter) hit(source, document_id, ordinal, content, metadata, distance, chunk_id);
END;

ALTER FUNCTION public.search(query double precision[], k integer, source text, filter jsonb) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search(query double precision[], k integer, source text, filter jsonb) IS 'search() with the query as an array of numbers.';

CREATE FUNCTION public.search(query text, k integer, source text DEFAULT NULL::text, filter jsonb DEFAULT '{}'::jsonb) RETURNS SETOF embedding_assets.hit
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT hit.*::embedding_assets.hit AS hit
    FROM public.search((search.query)::public.vector, search.k, search.source, search.filter) hit(source, document_id, ordinal, content, metadata, distance, chunk_id);
END;

ALTER FUNCTION public.search(query text, k integer, source text, filter jsonb) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search(query text, k integer, source text, filter jsonb) IS 'search() with the query as text, such as ''[0.1, 0.2]''.';

CREATE FUNCTION public.search(query public.vector, k integer, source text, filter jsonb, model text) RETURNS SETOF embedding_assets.hit
    LANGUAGE plpgsql
    AS $$
DECLARE
    before text := coalesce(current_setting('embedding_assets.model', true), '');
BEGIN
    PERFORM pg_catalog.set_config('embedding_assets.model', coalesce(model, ''), true);
    RETURN QUERY SELECT * FROM public.search(query, k, source, filter);
    PERFORM pg_catalog.set_config('embedding_assets.model', before, true);
END
$$;

ALTER FUNCTION public.search(query public.vector, k integer, source text, filter jsonb, model text) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search(query public.vector, k integer, source text, filter jsonb, model text) IS 'search() with a vector of this model: an error where another one is live.';

CREATE FUNCTION public.search(query text, k integer, source text, filter jsonb, model text) RETURNS SETOF embedding_assets.hit
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT hit.*::embedding_assets.hit AS hit
    FROM public.search((search.query)::public.vector, search.k, search.source, search.filter, search.model) hit(source, document_id, ordinal, content, metadata, distance, chunk_id);
END;

ALTER FUNCTION public.search(query text, k integer, source text, filter jsonb, model text) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search(query text, k integer, source text, filter jsonb, model text) IS 'The same with the query as text, such as ''[0.1, 0.2]''.';

CREATE FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text DEFAULT NULL::text, filter jsonb DEFAULT '{}'::jsonb) RETURNS SETOF embedding_assets.hybrid_hit
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN QUERY SELECT * FROM embedding_assets.fuse(query, query_text, k, source, filter, NULL);
END
$$;

ALTER FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text, filter jsonb) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text, filter jsonb) IS 'The k chunks (1 to 10000) that stand highest by distance to a vector of the live model and by the words of a text at once, read as a web search is. Needs hybrid: {language: ...} in the settings.';

CREATE FUNCTION public.search_hybrid(query double precision[], query_text text, k integer, source text DEFAULT NULL::text, filter jsonb DEFAULT '{}'::jsonb) RETURNS SETOF embedding_assets.hybrid_hit
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT hit.*::embedding_assets.hybrid_hit AS hit
    FROM public.search_hybrid((search_hybrid.query)::public.vector, search_hybrid.query_text, search_hybrid.k, search_hybrid.source, search_hybrid.filter) hit(source, document_id, ordinal, content, metadata, distance, score, chunk_id);
END;

ALTER FUNCTION public.search_hybrid(query double precision[], query_text text, k integer, source text, filter jsonb) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search_hybrid(query double precision[], query_text text, k integer, source text, filter jsonb) IS 'search_hybrid() with the query as an array of numbers.';

CREATE FUNCTION public.search_hybrid(query text, query_text text, k integer, source text DEFAULT NULL::text, filter jsonb DEFAULT '{}'::jsonb) RETURNS SETOF embedding_assets.hybrid_hit
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT hit.*::embedding_assets.hybrid_hit AS hit
    FROM public.search_hybrid((search_hybrid.query)::public.vector, search_hybrid.query_text, search_hybrid.k, search_hybrid.source, search_hybrid.filter) hit(source, document_id, ordinal, content, metadata, distance, score, chunk_id);
END;

ALTER FUNCTION public.search_hybrid(query text, query_text text, k integer, source text, filter jsonb) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search_hybrid(query text, query_text text, k integer, source text, filter jsonb) IS 'search_hybrid() with the query as text, such as ''[0.1, 0.2]''.';

CREATE FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text, filter jsonb, model text) RETURNS SETOF embedding_assets.hybrid_hit
    LANGUAGE plpgsql
    AS $$
DECLARE
    before text := coalesce(current_setting('embedding_assets.model', true), '');
BEGIN
    PERFORM pg_catalog.set_config('embedding_assets.model', coalesce(model, ''), true);
    RETURN QUERY SELECT * FROM public.search_hybrid(query, query_text, k, source, filter);
    PERFORM pg_catalog.set_config('embedding_assets.model', before, true);
END
$$;

ALTER FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text, filter jsonb, model text) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text, filter jsonb, model text) IS 'search_hybrid() with a vector of this model: an error where another one is live.';

CREATE FUNCTION public.search_hybrid(query text, query_text text, k integer, source text, filter jsonb, model text) RETURNS SETOF embedding_assets.hybrid_hit
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT hit.*::embedding_assets.hybrid_hit AS hit
    FROM public.search_hybrid((search_hybrid.query)::public.vector, search_hybrid.query_text, search_hybrid.k, search_hybrid.source, search_hybrid.filter, search_hybrid.model) hit(source, document_id, ordinal, content, metadata, distance, score, chunk_id);
END;

ALTER FUNCTION public.search_hybrid(query text, query_text text, k integer, source text, filter jsonb, model text) OWNER TO embedding_ingest;

COMMENT ON FUNCTION public.search_hybrid(query text, query_text text, k integer, source text, filter jsonb, model text) IS 'The same with the query as text, such as ''[0.1, 0.2]''.';

SET default_tablespace = '';

CREATE TABLE embedding_assets.chunks (
    source text NOT NULL,
    chunk_id uuid NOT NULL,
    document_id text NOT NULL,
    ordinal integer NOT NULL,
    start_offset integer NOT NULL,
    end_offset integer NOT NULL,
    content text NOT NULL,
    metadata jsonb NOT NULL,
    shard integer NOT NULL,
    digest bigint
)
PARTITION BY LIST (source);

ALTER TABLE embedding_assets.chunks OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.chunks IS 'All chunks, by source: each partition is the published generation of one.';

SET default_table_access_method = heap;

CREATE TABLE embedding_assets.comparisons (
    generation integer NOT NULL,
    slot text NOT NULL,
    live_slot text NOT NULL,
    target_root text NOT NULL,
    questions text NOT NULL,
    found jsonb NOT NULL,
    compared_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT comparisons_live_slot_check CHECK ((live_slot = ANY (ARRAY['v1'::text, 'v2'::text]))),
    CONSTRAINT comparisons_slot_check CHECK ((slot = ANY (ARRAY['v1'::text, 'v2'::text])))
);

ALTER TABLE embedding_assets.comparisons OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.comparisons IS 'How the searches of the slot that is not live compare with the live one''s.';

CREATE TABLE embedding_assets.dead_letters (
    id bigint NOT NULL,
    source text NOT NULL,
    stage text NOT NULL,
    model_version text,
    item text NOT NULL,
    document_id text,
    chunk_id uuid,
    payload text NOT NULL,
    error_class text NOT NULL,
    message text NOT NULL,
    attempts integer NOT NULL,
    replays integer DEFAULT 0 NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    standing boolean DEFAULT true NOT NULL,
    first_seen timestamp with time zone DEFAULT now() NOT NULL,
    last_seen timestamp with time zone DEFAULT now() NOT NULL,
    kind text NOT NULL,
    cure text NOT NULL,
    CONSTRAINT dead_letters_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT dead_letters_kind_check CHECK ((kind = ANY (ARRAY['document'::text, 'text'::text]))),
    CONSTRAINT dead_letters_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'replayed'::text, 'resolved'::text, 'escalated'::text])))
);

ALTER TABLE embedding_assets.dead_letters OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.dead_letters IS 'What could not be processed, and what was done about it.';

ALTER TABLE embedding_assets.dead_letters ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME embedding_assets.dead_letters_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE embedding_assets.fusion (
    source text NOT NULL,
    model text NOT NULL,
    weight double precision NOT NULL,
    evidence jsonb NOT NULL,
    chosen_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT fusion_weight_check CHECK (((weight >= (0)::double precision) AND (weight <= (1)::double precision)))
);

ALTER TABLE embedding_assets.fusion OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.fusion IS 'How much the vector counts in hybrid search of a source with a model, and what that was chosen by.';

CREATE TABLE embedding_assets.generations (
    id integer NOT NULL,
    source text NOT NULL,
    target_root text NOT NULL,
    state text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    published_at timestamp with time zone,
    rows_changed bigint DEFAULT 0 NOT NULL,
    language text,
    proved xid8,
    CONSTRAINT generations_state_check CHECK ((state = ANY (ARRAY['loading'::text, 'published'::text, 'retired'::text])))
);

ALTER TABLE embedding_assets.generations OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.generations IS 'The tables of chunks, generation_<id> each: loading, published or retired.';

ALTER TABLE embedding_assets.generations ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME embedding_assets.generations_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE embedding_assets.ledger (
    generation integer NOT NULL,
    shard integer NOT NULL,
    key text NOT NULL,
    rows integer NOT NULL,
    fingerprint text NOT NULL
);

ALTER TABLE embedding_assets.ledger OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.ledger IS 'What each shard of a generation was loaded from.';

CREATE TABLE embedding_assets.lexemes (
    source text NOT NULL,
    lexeme text NOT NULL,
    documents bigint NOT NULL,
    occurrences bigint NOT NULL
)
PARTITION BY LIST (source);

ALTER TABLE embedding_assets.lexemes OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.lexemes IS 'How many chunks of published generations have each lexeme; an empty one: all.';

CREATE TABLE embedding_assets.lock_schema (
);

ALTER TABLE embedding_assets.lock_schema OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.lock_schema IS 'Empty. Locked by whoever works on a source, or on the schema.';

CREATE TABLE embedding_assets.model_changes (
    id bigint NOT NULL,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    role text DEFAULT SESSION_USER NOT NULL,
    change text NOT NULL,
    slot text NOT NULL,
    model jsonb NOT NULL,
    reason text,
    evidence jsonb,
    forced boolean DEFAULT false NOT NULL,
    CONSTRAINT model_changes_change_check CHECK ((change = ANY (ARRAY['bound'::text, 'rechunked'::text, 'promoted'::text, 'rolled back'::text, 'retired'::text, 'emptied'::text]))),
    CONSTRAINT model_changes_slot_check CHECK ((slot = ANY (ARRAY['v1'::text, 'v2'::text])))
);

ALTER TABLE embedding_assets.model_changes OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.model_changes IS 'What was changed in models: when, by which role, why, and with what evidence.';

ALTER TABLE embedding_assets.model_changes ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME embedding_assets.model_changes_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE embedding_assets.models (
    slot text NOT NULL,
    name text NOT NULL,
    dimensions integer NOT NULL,
    provider text NOT NULL,
    live boolean NOT NULL,
    ef_search integer DEFAULT 40 NOT NULL,
    halfvec boolean DEFAULT false NOT NULL,
    endpoint jsonb,
    bound_at timestamp with time zone DEFAULT now() NOT NULL,
    live_since timestamp with time zone,
    superseded_at timestamp with time zone,
    chunking jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT models_dimensions_check CHECK (((dimensions >= 1) AND (dimensions <= 4000))),
    CONSTRAINT models_ef_search_check CHECK (((ef_search >= 1) AND (ef_search <= 1000))),
    CONSTRAINT models_slot_check CHECK ((slot = ANY (ARRAY['v1'::text, 'v2'::text])))
);

ALTER TABLE embedding_assets.models OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.models IS 'The model of each slot, and which of them is live.';

CREATE VIEW embedding_assets.model_versions AS
 SELECT slots.slot,
    models.name,
    models.dimensions,
    models.provider,
    ( SELECT format_type(pg_attribute.atttypid, pg_attribute.atttypmod) AS format_type
           FROM pg_attribute
          WHERE ((pg_attribute.attrelid = ('embedding_assets.chunks'::regclass)::oid) AND (pg_attribute.attname = ('embedding_'::text || slots.slot)))) AS type,
    models.chunking,
        CASE
            WHEN (models.name IS NULL) THEN 'empty'::text
            WHEN models.live THEN 'live'::text
            WHEN (EXISTS ( SELECT
               FROM embedding_assets.generations
              WHERE ((generations.state = 'published'::text) AND (generations.target_root = ''::text)))) THEN 'back-filling'::text
            WHEN (models.superseded_at IS NOT NULL) THEN 'retiring'::text
            ELSE 'ready'::text
        END AS state,
    models.bound_at,
    models.live_since,
    models.superseded_at
   FROM (unnest(ARRAY['v1'::text, 'v2'::text]) slots(slot)
     LEFT JOIN embedding_assets.models USING (slot));

ALTER VIEW embedding_assets.model_versions OWNER TO embedding_ingest;

COMMENT ON VIEW embedding_assets.model_versions IS 'Each slot''s model version and its state: empty, back-filling, ready, live or retiring.';

CREATE TABLE embedding_assets.readers (
    role text NOT NULL,
    source text NOT NULL
);

ALTER TABLE embedding_assets.readers OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.readers IS 'Which role may read which source, where row-level security is on.';

CREATE TABLE embedding_assets.recall (
    generation integer NOT NULL,
    slot text NOT NULL,
    vectors integer NOT NULL,
    ef_search integer NOT NULL,
    curve jsonb NOT NULL,
    index_id oid,
    built_bytes_per_vector double precision,
    changes_at_build bigint,
    changes_at_measurement bigint,
    measured_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT recall_slot_check CHECK ((slot = ANY (ARRAY['v1'::text, 'v2'::text])))
);

ALTER TABLE embedding_assets.recall OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.recall IS 'What was measured on the HNSW indexes of generations.';

CREATE TABLE embedding_assets.surface (
    singleton boolean DEFAULT true NOT NULL,
    language text,
    CONSTRAINT surface_singleton_check CHECK (singleton)
);

ALTER TABLE embedding_assets.surface OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.surface IS 'One row: what the search surface offers besides search().';

CREATE TABLE embedding_assets.surface_files (
    file text NOT NULL,
    sha256 text NOT NULL,
    version integer NOT NULL
);

ALTER TABLE embedding_assets.surface_files OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.surface_files IS 'The texts that the search surface was made from, and its version.';

CREATE TABLE embedding_assets.words (
    source text NOT NULL,
    chunk_id uuid NOT NULL,
    shard integer NOT NULL,
    digest bigint,
    length integer NOT NULL,
    words tsvector NOT NULL
)
PARTITION BY LIST (source);

ALTER TABLE embedding_assets.words OWNER TO embedding_ingest;

COMMENT ON TABLE embedding_assets.words IS 'The chunks of published generations as text search vectors, which hybrid search ranks by.';

CREATE VIEW public.live_chunks AS
 SELECT source,
    document_id,
    ordinal,
    content,
    metadata,
    NULL::public.vector AS embedding,
    chunk_id,
    start_offset,
    end_offset,
    (NULL::public.vector)::public.halfvec AS embedding_halfvec
   FROM embedding_assets.chunks
  WHERE (NULL::public.vector IS NOT NULL);

ALTER VIEW public.live_chunks OWNER TO embedding_surface;

COMMENT ON VIEW public.live_chunks IS 'Every chunk that search() can find, with its vector of the live model. Follows the live model.';

COMMENT ON COLUMN public.live_chunks.source IS 'The source of its document.';

COMMENT ON COLUMN public.live_chunks.document_id IS 'Its document, by the id that the source gives it.';

COMMENT ON COLUMN public.live_chunks.ordinal IS 'Its place among the document''s chunks, from 0.';

COMMENT ON COLUMN public.live_chunks.content IS 'Its text.';

COMMENT ON COLUMN public.live_chunks.metadata IS 'The document''s metadata, a JSON object.';

COMMENT ON COLUMN public.live_chunks.embedding IS 'Its vector, of length 1. An index serves ORDER BY embedding <=> query LIMIT k, unless the model keeps halfvec.';

COMMENT ON COLUMN public.live_chunks.chunk_id IS 'Its id.';

COMMENT ON COLUMN public.live_chunks.start_offset IS 'Where it begins in the document''s text, in characters.';

COMMENT ON COLUMN public.live_chunks.end_offset IS 'Where it ends there; the character at this offset is not in it.';

COMMENT ON COLUMN public.live_chunks.embedding_halfvec IS 'Its vector in 2-byte floats; the index of a model that keeps halfvec serves an order by this one.';

CREATE VIEW public.data_live_chunks AS
 SELECT ((('x'::text || "left"(replace((chunk_id)::text, '-'::text, ''::text), 16)))::bit(64))::bigint AS id,
    content AS text,
    ((metadata - ARRAY['_node_content'::text, '_node_type'::text, 'doc_id'::text, 'ref_doc_id'::text]) || jsonb_build_object('source', source, 'document_id', document_id, 'ordinal', ordinal)) AS metadata_,
    (chunk_id)::text AS node_id,
    embedding
   FROM public.live_chunks;

ALTER VIEW public.data_live_chunks OWNER TO embedding_surface;

COMMENT ON VIEW public.data_live_chunks IS 'live_chunks as LlamaIndex''s PGVectorStore reads it: table_name=''live_chunks'', perform_setup=False.';

COMMENT ON COLUMN public.data_live_chunks.id IS 'The first half of node_id as a number: for LlamaIndex alone.';

COMMENT ON COLUMN public.data_live_chunks.text IS 'The chunk''s text.';

COMMENT ON COLUMN public.data_live_chunks.metadata_ IS 'The document''s metadata with source, document_id and ordinal besides, which come before fields of these names.';

COMMENT ON COLUMN public.data_live_chunks.node_id IS 'The chunk_id of live_chunks.';

COMMENT ON COLUMN public.data_live_chunks.embedding IS 'The vector of the live model, as in live_chunks.';

ALTER TABLE ONLY embedding_assets.comparisons
    ADD CONSTRAINT comparisons_pkey PRIMARY KEY (generation, slot);

ALTER TABLE ONLY embedding_assets.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (id);

ALTER TABLE ONLY embedding_assets.fusion
    ADD CONSTRAINT fusion_pkey PRIMARY KEY (source, model);

ALTER TABLE ONLY embedding_assets.generations
    ADD CONSTRAINT generations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY embedding_assets.ledger
    ADD CONSTRAINT ledger_pkey PRIMARY KEY (generation, shard);

ALTER TABLE ONLY embedding_assets.model_changes
    ADD CONSTRAINT model_changes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY embedding_assets.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (slot);

ALTER TABLE ONLY embedding_assets.readers
    ADD CONSTRAINT readers_pkey PRIMARY KEY (role, source);

ALTER TABLE ONLY embedding_assets.recall
    ADD CONSTRAINT recall_pkey PRIMARY KEY (generation, slot);

ALTER TABLE ONLY embedding_assets.surface_files
    ADD CONSTRAINT surface_files_pkey PRIMARY KEY (file);

ALTER TABLE ONLY embedding_assets.surface
    ADD CONSTRAINT surface_pkey PRIMARY KEY (singleton);

CREATE UNIQUE INDEX dead_letters_by_item ON embedding_assets.dead_letters USING btree (source, stage, COALESCE(model_version, ''::text), item);

CREATE UNIQUE INDEX generations_one_published ON embedding_assets.generations USING btree (source) WHERE (state = 'published'::text);

CREATE UNIQUE INDEX models_one_live ON embedding_assets.models USING btree (live) WHERE live;

ALTER TABLE ONLY embedding_assets.comparisons
    ADD CONSTRAINT comparisons_generation_fkey FOREIGN KEY (generation) REFERENCES embedding_assets.generations(id) ON DELETE CASCADE;

ALTER TABLE ONLY embedding_assets.ledger
    ADD CONSTRAINT ledger_generation_fkey FOREIGN KEY (generation) REFERENCES embedding_assets.generations(id) ON DELETE CASCADE;

ALTER TABLE ONLY embedding_assets.recall
    ADD CONSTRAINT recall_generation_fkey FOREIGN KEY (generation) REFERENCES embedding_assets.generations(id) ON DELETE CASCADE;

GRANT USAGE ON SCHEMA embedding_assets TO embedding_surface;

GRANT CREATE ON SCHEMA public TO embedding_ingest;
GRANT CREATE ON SCHEMA public TO embedding_surface;

REVOKE ALL ON FUNCTION public.live_model() FROM PUBLIC;
GRANT ALL ON FUNCTION public.live_model() TO embedding_search;

REVOKE ALL ON FUNCTION public.search(query public.vector, k integer, source text, filter jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search(query public.vector, k integer, source text, filter jsonb) TO embedding_search;

REVOKE ALL ON FUNCTION public.search(query double precision[], k integer, source text, filter jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search(query double precision[], k integer, source text, filter jsonb) TO embedding_search;

REVOKE ALL ON FUNCTION public.search(query text, k integer, source text, filter jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search(query text, k integer, source text, filter jsonb) TO embedding_search;

REVOKE ALL ON FUNCTION public.search(query public.vector, k integer, source text, filter jsonb, model text) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search(query public.vector, k integer, source text, filter jsonb, model text) TO embedding_search;

REVOKE ALL ON FUNCTION public.search(query text, k integer, source text, filter jsonb, model text) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search(query text, k integer, source text, filter jsonb, model text) TO embedding_search;

REVOKE ALL ON FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text, filter jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text, filter jsonb) TO embedding_search;

REVOKE ALL ON FUNCTION public.search_hybrid(query double precision[], query_text text, k integer, source text, filter jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search_hybrid(query double precision[], query_text text, k integer, source text, filter jsonb) TO embedding_search;

REVOKE ALL ON FUNCTION public.search_hybrid(query text, query_text text, k integer, source text, filter jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search_hybrid(query text, query_text text, k integer, source text, filter jsonb) TO embedding_search;

REVOKE ALL ON FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text, filter jsonb, model text) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search_hybrid(query public.vector, query_text text, k integer, source text, filter jsonb, model text) TO embedding_search;

REVOKE ALL ON FUNCTION public.search_hybrid(query text, query_text text, k integer, source text, filter jsonb, model text) FROM PUBLIC;
GRANT ALL ON FUNCTION public.search_hybrid(query text, query_text text, k integer, source text, filter jsonb, model text) TO embedding_search;

GRANT SELECT ON TABLE embedding_assets.chunks TO embedding_surface;

GRANT SELECT ON TABLE public.live_chunks TO embedding_search;

GRANT SELECT ON TABLE public.data_live_chunks TO embedding_search;

INSERT INTO embedding_assets.surface (singleton, language) VALUES (true, NULL);
