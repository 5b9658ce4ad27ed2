-- The roles of a region's database, for an administrator, where the pipeline may not make them itself. Once in each
-- database, from the project's folder:
--
--     psql -v pipeline=my_pipeline -f sql/roles.sql "host=my_host dbname=my_database"
--
-- my_pipeline: the role that the pipeline logs in as. It needs LOGIN and no other attribute, and need not own anything.
-- Who runs this is a superuser, or owns the database and may create roles (then pgvector has to be installed already,
-- where the server lets superusers alone install it). It is one transaction, and may be run again at any time.
--
-- Roles are the cluster's: a second pipeline, with its own database and its own login role, is served by the same file.
-- Both are then members of embedding_ingest, each in every database that it may connect to: what keeps them apart is
-- REVOKE CONNECT ON DATABASE … FROM PUBLIC.
\set ON_ERROR_STOP on
\set QUIET on
\if :{?pipeline}
\else
DO $$ BEGIN RAISE EXCEPTION 'who does the pipeline log in as? Cure: psql -v pipeline=<its role> -f sql/roles.sql …'; END $$;
\endif
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog, pg_temp; -- nothing that somebody has put into public runs with our rights
SET LOCAL lock_timeout = '5s'; -- readers wait behind us while the tables change hands; after a failure run it again
SET LOCAL idle_in_transaction_session_timeout = '5s'; -- nor do they wait for a psql that stands still

-- ingest owns the tables and functions, surface the views of them, search may search: for applications.
SELECT format('CREATE ROLE %I NOLOGIN', wanted)
FROM unnest(ARRAY['embedding_ingest', 'embedding_search', 'embedding_surface']) AS wanted
WHERE to_regrole(wanted) IS NULL
\gexec

-- Only a member may give things to a role: superusers may anyway, others have to be one.
SELECT format('GRANT embedding_ingest TO %I', rolname) FROM pg_roles WHERE rolname = current_user AND NOT rolsuper
\gexec

-- The pipeline works as embedding_ingest (SET), and has its rights where it asks only (INHERIT).
GRANT embedding_surface TO embedding_ingest;
SELECT current_setting('server_version_num')::integer >= 160000 AS has_options
\gset
\if :has_options
GRANT embedding_ingest TO :"pipeline" WITH INHERIT TRUE, SET TRUE;
\else
GRANT embedding_ingest TO :"pipeline";
ALTER ROLE :"pipeline" INHERIT; -- until PostgreSQL 16 a property of the member; it is the default
\endif
GRANT CONNECT ON DATABASE :"DBNAME" TO :"pipeline";

CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;
SELECT format('GRANT USAGE ON SCHEMA %s TO embedding_ingest, embedding_search', extnamespace::regnamespace)
FROM pg_extension WHERE extname = 'vector'
\gexec

-- Tables and whatever else applications do not see: the role's own, so that it needs no CREATE on the database.
CREATE SCHEMA IF NOT EXISTS embedding_assets AUTHORIZATION embedding_ingest;

-- search(), search_hybrid(), live_model() and the views are in public. Replacing a view, as a change of the live model
-- does, asks for CREATE each time; giving one to embedding_surface asks that one for it, too.
GRANT USAGE, CREATE ON SCHEMA public TO embedding_ingest;
GRANT CREATE ON SCHEMA public TO embedding_surface;
GRANT USAGE ON SCHEMA public TO embedding_search;

-- Where a pipeline has run with rights of its own: what it made becomes the role's. What is not ours to give, the
-- pipeline gives at its next run.
SELECT format('ALTER %s %s OWNER TO embedding_ingest', kind, name)
FROM (
    SELECT 'SCHEMA', quote_ident(nspname), nspowner FROM pg_namespace WHERE nspname = 'embedding_assets'
    UNION ALL
    SELECT CASE relkind WHEN 'c' THEN 'TYPE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, oid::regclass::text, relowner
    FROM pg_class
    WHERE relnamespace = 'embedding_assets'::regnamespace AND relkind IN ('r', 'p', 'v', 'c')
       OR oid IN (to_regclass('public.live_chunks'), to_regclass('public.data_live_chunks'))
          AND relowner <> 'embedding_surface'::regrole
    UNION ALL
    SELECT 'FUNCTION', oid::regprocedure::text, proowner FROM pg_proc
    WHERE pronamespace = 'embedding_assets'::regnamespace
       OR prorettype IN (SELECT oid FROM pg_type WHERE typnamespace = 'embedding_assets'::regnamespace)
) AS made (kind, name, owner)
WHERE owner <> 'embedding_ingest'::regrole AND pg_has_role(owner, 'USAGE')
\gexec

-- Queries of live_chunks go on past index entries whose rows are gone. Another choice than this one stands. Before its
-- library is loaded in the session, pgvector's settings are nobody's, and superusers alone may name them.
DO $$
BEGIN
    EXECUTE (
        SELECT format('SELECT %L::%s.vector', '[1]', extnamespace::regnamespace) FROM pg_extension WHERE extname = 'vector'
    );
END
$$;
SELECT format('ALTER DATABASE %I SET hnsw.iterative_scan = strict_order', current_database())
WHERE NOT EXISTS (
    SELECT FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase, unnest(setconfig) AS chosen
    WHERE datname = current_database() AND setrole = 0 AND chosen LIKE 'hnsw.iterative_scan=%'
)
\gexec
COMMIT;
\echo The roles of database :DBNAME are set up for :pipeline
