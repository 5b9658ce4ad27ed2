-- The registry of model versions. Which model each slot has, and which of them is live, stands in models as before; what
-- was changed there, when, by whom, why and with what evidence stands in model_changes, and is only ever added to.
ALTER TABLE embedding_assets.models
    ADD COLUMN IF NOT EXISTS bound_at timestamptz NOT NULL DEFAULT now(),
    -- Since when it is live, or is no longer: rolled back to within the validation window, and retired after it.
    ADD COLUMN IF NOT EXISTS live_since timestamptz,
    ADD COLUMN IF NOT EXISTS superseded_at timestamptz,
    -- By source, how the texts were cut that its vectors are of.
    ADD COLUMN IF NOT EXISTS chunking jsonb NOT NULL DEFAULT '{}';

CREATE TABLE IF NOT EXISTS embedding_assets.model_changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    changed_at timestamptz NOT NULL DEFAULT now(),
    role text NOT NULL DEFAULT session_user,
    change text NOT NULL CHECK (change IN ('bound', 'rechunked', 'promoted', 'rolled back', 'retired', 'emptied')),
    slot text NOT NULL CHECK (slot IN ('v1', 'v2')),
    model jsonb NOT NULL, -- {name, dimensions, provider, type}
    reason text,
    evidence jsonb,
    forced boolean NOT NULL DEFAULT false
);

-- What was found when the searches of two slots were compared: so long as the rows and the questions are the same, it is
-- not asked again.
CREATE TABLE IF NOT EXISTS embedding_assets.comparisons (
    generation integer NOT NULL REFERENCES embedding_assets.generations (id) ON DELETE CASCADE,
    slot text NOT NULL CHECK (slot IN ('v1', 'v2')),
    live_slot text NOT NULL CHECK (live_slot IN ('v1', 'v2')),
    target_root text NOT NULL,
    questions text NOT NULL, -- what they are known by
    found jsonb NOT NULL,
    compared_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (generation, slot)
);
