-- What the tables beneath the surface are for. Applications have no right on them.
COMMENT ON SCHEMA embedding_assets IS
    'What embedding-assets keeps in a region''s database. Applications use search(), search_hybrid(), live_model() and '
    'live_chunks, in the schema public.';
COMMENT ON TABLE embedding_assets.chunks IS 'All chunks, by source: each partition is the published generation of one.';
COMMENT ON TABLE embedding_assets.generations IS 'The tables of chunks, generation_<id> each: loading, published or retired.';
COMMENT ON TABLE embedding_assets.ledger IS 'What each shard of a generation was loaded from.';
COMMENT ON TABLE embedding_assets.models IS 'The model of each slot, and which of them is live.';
COMMENT ON TABLE embedding_assets.model_changes IS
    'What was changed in models: when, by which role, why, and with what evidence.';
COMMENT ON TABLE embedding_assets.comparisons IS 'How the searches of the slot that is not live compare with the live one''s.';
COMMENT ON TABLE embedding_assets.recall IS 'What was measured on the HNSW indexes of generations.';
COMMENT ON TABLE embedding_assets.readers IS 'Which role may read which source, where row-level security is on.';
COMMENT ON TABLE embedding_assets.dead_letters IS 'What could not be processed, and what was done about it.';
COMMENT ON TABLE embedding_assets.surface IS 'One row: what the search surface offers besides search().';
COMMENT ON TABLE embedding_assets.surface_files IS 'The texts that the search surface was made from, and its version.';
COMMENT ON TABLE embedding_assets.words IS
    'The chunks of published generations as text search vectors, which hybrid search ranks by.';
COMMENT ON TABLE embedding_assets.lexemes IS 'How many chunks of published generations have each lexeme; an empty one: all.';
COMMENT ON TABLE embedding_assets.fusion IS
    'How much the vector counts in hybrid search of a source with a model, and what that was chosen by.';
