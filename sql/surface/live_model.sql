-- The live model: what an application needs to know to embed a question so that search() can compare it.
CREATE OR REPLACE FUNCTION public.live_model() RETURNS embedding_assets.live_model
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_model embedding_assets.live_model;
BEGIN
    SELECT name, dimensions, provider, slot, endpoint INTO found_model FROM embedding_assets.models WHERE live;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this database has no live model yet'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Materialize pgvector_table for this region.';
    END IF;
    RETURN found_model;
END
$$;

COMMENT ON FUNCTION public.live_model() IS
    'The live model: embed a question with it, and search() can compare. Changes when another model version becomes live.';
