-- How a slot's model is asked for, for applications that embed their own questions: settings of an endpoint, and no
-- secret among them. NULL: a bundled model, or a slot that was bound before this was recorded.
ALTER TABLE embedding_assets.models ADD COLUMN IF NOT EXISTS endpoint jsonb;
