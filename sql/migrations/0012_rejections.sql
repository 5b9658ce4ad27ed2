-- A dead letter says its kind and its cure in columns of their own, and classes of errors are written one way.
--
-- Before, `message` of a rejected document ended in its cure, as did that of a text where there was one, and classes of
-- documents were written with underscores. What a version of today puts on record needs none of this.
ALTER TABLE embedding_assets.dead_letters ADD COLUMN IF NOT EXISTS kind text CHECK (kind IN ('document', 'text'));
ALTER TABLE embedding_assets.dead_letters ADD COLUMN IF NOT EXISTS cure text;

WITH cures (of_old, cure) AS (
    VALUES
        (
            'save it as UTF-8, or as UTF-16 with a byte order mark',
            'save it as UTF-8, and let it declare no other charset'
        ),
        ('write one JSON object a line, each key once', NULL),
        ('simplify the page''s markup, or supply its text', NULL),
        ('give each document an id: a string, or an integer', NULL),
        ('name it with at most 1,024 bytes of UTF-8, without control characters', NULL),
        ('give each document of the source an id of its own', NULL),
        ('put the text, as a string, into the field that the source''s settings name', NULL),
        ('fill it, or remove the document from the source', NULL),
        ('remove the NUL characters, which PostgreSQL cannot store; perhaps the file is not text', NULL),
        ('write characters beyond U+FFFF as both halves of their \u escape, or as UTF-8', NULL),
        ('split the document', NULL),
        ('let this process read it, or remove it from the source', NULL),
        ('copy the file into the source''s folder, or add a source for the place it lies in', NULL),
        ('correct the fields that the source''s settings list under metadata, or list fewer', NULL),
        ('mend the text at its source, or leave it out', NULL),
        ('let the gateway''s firewall pass this text', 'let the gateway''s firewall pass this text, then replay it'),
        ('lower max_tokens of the source''s chunking', NULL),
        ('raise timeout_seconds, or lower max_items', 'raise timeout_seconds of the model, then replay it'),
        ('lower max_items', 'raise timeout_seconds of the model, then replay it'),
        ('see the provider''s log', 'see the provider''s log; then replay it, or mend the text at its source'),
        ('other texts are answered well: ask who runs the endpoint why not this one, or leave it out', NULL)
)
UPDATE embedding_assets.dead_letters
SET message = left(message, length(message) - length(of_old) - 2), cure = coalesce(cures.cure, of_old)
FROM cures
WHERE kind IS NULL AND right(message, length(of_old) + 2) IN ('; ' || of_old, ': ' || of_old);

UPDATE embedding_assets.dead_letters
SET kind = CASE WHEN chunk_id IS NULL THEN 'document' ELSE 'text' END,
    error_class = CASE
        WHEN chunk_id IS NULL THEN replace(error_class, '_', '-')
        WHEN error_class = 'too-large' THEN 'request-too-large'
        ELSE error_class
    END,
    cure = coalesce(cure, 'replay it (embedding-assets dead-letters replay); if it fails again, mend the text at its source')
WHERE kind IS NULL;

ALTER TABLE embedding_assets.dead_letters ALTER COLUMN kind SET NOT NULL, ALTER COLUMN cure SET NOT NULL;
