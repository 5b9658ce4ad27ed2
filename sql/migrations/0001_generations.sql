-- The tables of a region. Internal objects live in the schema embedding_assets, the search surface in public.
--
-- yoyo runs each migration in one transaction and records it in a second one: a process killed between the two runs it
-- again. So every statement here may run twice.

-- The binding of each slot to its model; embedding_v1 and embedding_v2 of chunks have the models' dimensions.
CREATE TABLE IF NOT EXISTS embedding_assets.models (
    slot text PRIMARY KEY CHECK (slot IN ('v1', 'v2')),
    name text NOT NULL,
    dimensions integer NOT NULL CHECK (dimensions BETWEEN 1 AND 4000),
    provider text NOT NULL,
    live boolean NOT NULL,
    -- What search() sets: the smallest that reached the recall wanted in every published generation.
    ef_search integer NOT NULL DEFAULT 40 CHECK (ef_search BETWEEN 1 AND 1000)
);

CREATE UNIQUE INDEX IF NOT EXISTS models_one_live ON embedding_assets.models (live) WHERE live;

-- What readers see: one partition, the published generation, for each source.
-- The vectors' columns are added when the models are known.
CREATE TABLE IF NOT EXISTS embedding_assets.chunks (
    source text NOT NULL,
    chunk_id uuid NOT NULL,
    document_id text NOT NULL,
    ordinal integer NOT NULL,
    start_offset integer NOT NULL,
    end_offset integer NOT NULL,
    content text NOT NULL,
    metadata jsonb NOT NULL,
    shard integer NOT NULL
) PARTITION BY LIST (source);

-- A generation's table is embedding_assets.generation_<id>: no text from outside is ever part of a name.
CREATE TABLE IF NOT EXISTS embedding_assets.generations (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text NOT NULL,
    target_root text NOT NULL,
    -- loading: detached, perhaps unfinished; published: attached to chunks; retired: detached again, to be dropped
    state text NOT NULL CHECK (state IN ('loading', 'published', 'retired')),
    created_at timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz
);

CREATE UNIQUE INDEX IF NOT EXISTS generations_one_published
    ON embedding_assets.generations (source) WHERE state = 'published';

-- One row for each shard loaded, written in the transaction of the shard's rows.
CREATE TABLE IF NOT EXISTS embedding_assets.ledger (
    generation integer NOT NULL REFERENCES embedding_assets.generations (id) ON DELETE CASCADE,
    shard integer NOT NULL,
    key text NOT NULL,
    rows integer NOT NULL,
    fingerprint text NOT NULL,
    PRIMARY KEY (generation, shard)
);

-- What was measured on a generation's HNSW indexes.
CREATE TABLE IF NOT EXISTS embedding_assets.recall (
    generation integer NOT NULL REFERENCES embedding_assets.generations (id) ON DELETE CASCADE,
    slot text NOT NULL CHECK (slot IN ('v1', 'v2')),
    vectors integer NOT NULL,
    ef_search integer NOT NULL,
    curve jsonb NOT NULL, -- [[ef_search, recall@10, p50 ms, p95 ms], …]
    PRIMARY KEY (generation, slot)
);
