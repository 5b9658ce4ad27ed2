-- What search surface a database has: each file of sql/surface that it was made from, by its hash, and the number that
-- the whole surface had then. A program with a lower number leaves it alone.

CREATE TABLE IF NOT EXISTS embedding_assets.surface_files (
    file text PRIMARY KEY,
    sha256 text NOT NULL, -- of the file's text; '' where migrations ran since, some of which made functions of their own
    version integer NOT NULL
);
