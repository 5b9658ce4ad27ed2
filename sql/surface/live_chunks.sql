-- The view live_chunks: every chunk that search() can find, with its vector of the live model. It is made anew whenever
-- another model becomes live, by this function, so that what makes it is the database's own and never an older program's.
--
-- ::vector, without dimensions, keeps the column's type whatever the model, so that the view can be replaced under
-- prepared statements, and still lets the index of a vector be used; ::halfvec does so for a halfvec
-- (docs/decisions/0005). Columns are only ever appended: Postgres refuses to replace a view otherwise.
--
-- Where no model is live it has no rows, and refers to no vectors' column, which may be made anew then.
CREATE OR REPLACE FUNCTION embedding_assets.show_live_model() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
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
$$;

SELECT embedding_assets.show_live_model();

COMMENT ON FUNCTION embedding_assets.show_live_model() IS
    'Makes the view live_chunks for the model that is live; the pipeline calls it when that changes.';
