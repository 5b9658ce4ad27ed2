-- Whether a slot keeps 2-byte floats where 4-byte ones could be indexed as well; above 2,000 dimensions it always does.
ALTER TABLE embedding_assets.models ADD COLUMN IF NOT EXISTS halfvec boolean NOT NULL DEFAULT false;
