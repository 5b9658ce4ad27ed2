-- What could not be processed, and what was done about it. Filled in the primary region's database alone.
--
-- The snapshots say what is dead; here stand its history and what people decided. Losing this table loses those.
CREATE TABLE IF NOT EXISTS embedding_assets.dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text NOT NULL,
    stage text NOT NULL,
    model_version text, -- v1 or v2; NULL where no model was asked
    item text NOT NULL, -- what tells it from others of its stage: file and line, or the hash of a text
    document_id text,
    chunk_id uuid,
    payload text NOT NULL, -- where it can be read: a file of the source and its line, or a part of the primary's store
    error_class text NOT NULL,
    message text NOT NULL,
    attempts integer NOT NULL CHECK (attempts >= 0),
    replays integer NOT NULL DEFAULT 0, -- times it was tried again since it was first seen
    -- pending: nobody looked at it yet; replayed: the source's next run tries it again; escalated: people were told;
    -- resolved: it is gone, or somebody accepts that it stays out
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'replayed', 'resolved', 'escalated')),
    standing boolean NOT NULL DEFAULT true, -- whether the last run of its stage still found it dead
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now()
);

CREATE UNIQUE INDEX IF NOT EXISTS dead_letters_by_item
    ON embedding_assets.dead_letters (source, stage, coalesce(model_version, ''), item);
