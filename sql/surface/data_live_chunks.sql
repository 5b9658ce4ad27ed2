-- live_chunks with the names and types that LlamaIndex's PGVectorStore(table_name='live_chunks', perform_setup=False)
-- reads: it puts data_ before the name of a table. Its id is a bigint of its own, the first half of the chunk's. Fields of
-- metadata that LlamaIndex would take for a node of its own making are left out: they are a document's author's.
CREATE OR REPLACE VIEW public.data_live_chunks AS
SELECT ('x' || left(replace(chunk_id::text, '-', ''), 16))::bit(64)::bigint AS id,
       content AS text,
       metadata - ARRAY['_node_content', '_node_type', 'doc_id', 'ref_doc_id']
           || jsonb_build_object('source', source, 'document_id', document_id, 'ordinal', ordinal) AS metadata_,
       chunk_id::text AS node_id,
       embedding
FROM public.live_chunks;

COMMENT ON VIEW public.data_live_chunks IS
    'live_chunks as LlamaIndex''s PGVectorStore reads it: table_name=''live_chunks'', perform_setup=False.';
COMMENT ON COLUMN public.data_live_chunks.id IS 'The first half of node_id as a number: for LlamaIndex alone.';
COMMENT ON COLUMN public.data_live_chunks.text IS 'The chunk''s text.';
COMMENT ON COLUMN public.data_live_chunks.metadata_ IS
    'The document''s metadata with source, document_id and ordinal besides, which come before fields of these names.';
COMMENT ON COLUMN public.data_live_chunks.node_id IS 'The chunk_id of live_chunks.';
COMMENT ON COLUMN public.data_live_chunks.embedding IS 'The vector of the live model, as in live_chunks.';
