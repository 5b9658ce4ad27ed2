-- What is locked while the schema is changed. Before, that was an advisory lock, which anybody may hold who may connect.
CREATE TABLE IF NOT EXISTS embedding_assets.lock_schema ();
