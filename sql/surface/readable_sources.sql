-- The sources that this session may read, by the role that it logged in as: SET ROLE changes nothing. Whoever owns the
-- tables loads and checks them, and reads all. Open to everybody: a policy calls it with the reader's own rights, and it
-- tells a session of nothing but itself.
CREATE OR REPLACE FUNCTION embedding_assets.readable_sources() RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_has_role(
        session_user, (SELECT relowner FROM pg_class WHERE oid = 'embedding_assets.chunks'::regclass), 'USAGE'
    ) THEN
        RETURN ARRAY(SELECT source FROM embedding_assets.generations WHERE state = 'published');
    END IF;
    RETURN ARRAY(
        SELECT DISTINCT source FROM embedding_assets.readers JOIN pg_roles ON rolname = role
        WHERE pg_has_role(session_user, pg_roles.oid, 'USAGE')
    );
END
$$;

COMMENT ON FUNCTION embedding_assets.readable_sources() IS
    'The sources that this session may read, by the role that it logged in as; row-level security asks it.';
