-- What the functions of the surface return. Attributes are only ever appended: a statement that names its columns goes on.
-- Here and not in a migration, for an attribute and the function that fills it have to come in one transaction.

DO $$
BEGIN
    ALTER TYPE embedding_assets.hit ADD ATTRIBUTE chunk_id uuid;
EXCEPTION WHEN duplicate_column THEN
    NULL;
END
$$;

DO $$
BEGIN
    ALTER TYPE embedding_assets.hybrid_hit ADD ATTRIBUTE chunk_id uuid;
EXCEPTION WHEN duplicate_column THEN
    NULL;
END
$$;

DO $$
BEGIN
    CREATE TYPE embedding_assets.live_model AS (name text, dimensions integer, provider text, slot text);
EXCEPTION WHEN duplicate_object THEN
    NULL;
END
$$;

DO $$
BEGIN
    ALTER TYPE embedding_assets.live_model ADD ATTRIBUTE endpoint jsonb;
EXCEPTION WHEN duplicate_column THEN
    NULL;
END
$$;

COMMENT ON TYPE embedding_assets.hit IS 'A chunk that search() found.';
COMMENT ON COLUMN embedding_assets.hit.source IS 'The source of its document.';
COMMENT ON COLUMN embedding_assets.hit.document_id IS 'Its document, by the id that the source gives it.';
COMMENT ON COLUMN embedding_assets.hit.ordinal IS 'Its place among the document''s chunks, from 0.';
COMMENT ON COLUMN embedding_assets.hit.content IS 'Its text.';
COMMENT ON COLUMN embedding_assets.hit.metadata IS 'The document''s metadata, a JSON object.';
COMMENT ON COLUMN embedding_assets.hit.distance IS 'Cosine distance to the query: 0 the same direction, 2 the opposite.';
COMMENT ON COLUMN embedding_assets.hit.chunk_id IS 'Its id, the same as in live_chunks.';

COMMENT ON TYPE embedding_assets.hybrid_hit IS 'A chunk that search_hybrid() found.';
COMMENT ON COLUMN embedding_assets.hybrid_hit.source IS 'The source of its document.';
COMMENT ON COLUMN embedding_assets.hybrid_hit.document_id IS 'Its document, by the id that the source gives it.';
COMMENT ON COLUMN embedding_assets.hybrid_hit.ordinal IS 'Its place among the document''s chunks, from 0.';
COMMENT ON COLUMN embedding_assets.hybrid_hit.content IS 'Its text.';
COMMENT ON COLUMN embedding_assets.hybrid_hit.metadata IS 'The document''s metadata, a JSON object.';
COMMENT ON COLUMN embedding_assets.hybrid_hit.distance IS
    'Cosine distance to the query: 0 the same direction, 2 the opposite.';
COMMENT ON COLUMN embedding_assets.hybrid_hit.score IS
    'How high it stands in both rankings together: the higher the better, among the hits of one search.';
COMMENT ON COLUMN embedding_assets.hybrid_hit.chunk_id IS 'Its id, the same as in live_chunks.';

COMMENT ON TYPE embedding_assets.live_model IS 'The model that a question has to be embedded with.';
COMMENT ON COLUMN embedding_assets.live_model.name IS 'The model''s name at its provider.';
COMMENT ON COLUMN embedding_assets.live_model.dimensions IS 'The length of its vectors.';
COMMENT ON COLUMN embedding_assets.live_model.provider IS 'Who computes them: local, or an endpoint as openai has it.';
COMMENT ON COLUMN embedding_assets.live_model.slot IS 'The model version that is live: v1 or v2.';
COMMENT ON COLUMN embedding_assets.live_model.endpoint IS
    'How the endpoint is asked for it, without secrets: name, base_url, the variable of the key. NULL for a bundled model.';
