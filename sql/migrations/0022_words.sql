-- Hybrid search ranks by BM25 over words that are kept for it (docs/decisions/0016): a table of each generation's chunks
-- as text search vectors, and one of how many of its chunks have each lexeme.

-- The language that a generation's words are kept in; NULL: none are, and hybrid search does without this index.
ALTER TABLE embedding_assets.generations ADD COLUMN IF NOT EXISTS language text;

CREATE TABLE IF NOT EXISTS embedding_assets.words (
    source text NOT NULL,
    chunk_id uuid NOT NULL,
    shard integer NOT NULL,
    digest bigint, -- of the chunk's row: what these words were made of
    length integer NOT NULL,
    words tsvector NOT NULL
) PARTITION BY LIST (source);

-- The lexeme '' stands for all: its documents are the generation's chunks, its occurrences their lengths together.
CREATE TABLE IF NOT EXISTS embedding_assets.lexemes (
    source text NOT NULL,
    lexeme text NOT NULL,
    documents bigint NOT NULL,
    occurrences bigint NOT NULL
) PARTITION BY LIST (source);

-- How much the vector counts in hybrid search, chosen for a source and a model by questions whose answers are known.
CREATE TABLE IF NOT EXISTS embedding_assets.fusion (
    source text NOT NULL,
    model text NOT NULL,
    weight double precision NOT NULL CHECK (weight BETWEEN 0 AND 1),
    evidence jsonb NOT NULL,
    chosen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, model)
);
