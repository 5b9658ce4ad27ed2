-- A generation whose rows were hashed need not be hashed again before it is published.

-- The transactions before this one had ended when the rows were hashed, and all was as it had been sent: a row that none
-- of them wrote has been written since. NULL: not hashed yet, or something differed.
ALTER TABLE embedding_assets.generations ADD COLUMN IF NOT EXISTS proved xid8;
