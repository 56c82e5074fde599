"""The statements that we run on a database that we watch. Constants: values are parameters only.

Query text is looked at inside the server; only its first keyword leaves it, and its beginning
without literals and comments.
"""

from __future__ import annotations

RIGHTS = """
SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_sessions,
       pg_has_role(current_user, 'pg_signal_backend', 'USAGE') AS signals,
       current_setting('track_activities')::bool AS tracked,
       current_user::text AS role
"""
"""Whether other roles' sessions show their state to us (without it rows are silently missing),
and whether we may signal them."""

USAGE = """
SELECT count(*) AS used,
       current_setting('max_connections')::int
         - current_setting('superuser_reserved_connections')::int
         - coalesce(current_setting('reserved_connections', true)::int, 0) AS available
FROM pg_stat_activity WHERE backend_type = 'client backend'
"""

BY_STATE = """
SELECT coalesce(state, 'unknown') AS state, count(*) AS count FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = current_database() GROUP BY 1
"""

HOLDERS = """
SELECT coalesce(datname::text, '') AS database, coalesce(usename::text, '') AS role,
       count(*)::int AS count, current_database()::text AS ours, pg_is_in_recovery() AS standby
FROM pg_stat_activity WHERE backend_type = 'client backend'
GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 100
"""
"""Who holds the server's connections; our own session is always one of them."""

SESSIONS = r"""
WITH locks AS MATERIALIZED (
  SELECT l.pid, l.locktype, l.mode, l.relation, c.relpersistence,
         l.mode = 'AccessShareLock' AND c.relkind IN ('r', 'p') AND c.relhasindex
           AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace)
           AS is_read
  FROM pg_locks l LEFT JOIN pg_class c ON c.oid = l.relation
  WHERE l.granted AND l.pid IS NOT NULL AND l.locktype IN ('relation', 'advisory')
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
), held AS MATERIALIZED (
  SELECT l.pid,
         bool_or(l.locktype = 'relation' AND l.relpersistence IS DISTINCT FROM 't' AND l.mode IN
           ('AccessExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareRowExclusiveLock'))
           AS changes_schema,
         bool_or(l.locktype = 'advisory') AS is_leader,
         count(*) FILTER (WHERE l.is_read AND NOT EXISTS (
           SELECT FROM locks o JOIN pg_index i ON i.indexrelid = o.relation
           WHERE o.pid = l.pid AND i.indrelid = l.relation)) > 1 AS dumps
  FROM locks l GROUP BY l.pid
), shown AS MATERIALIZED (
  SELECT setting::int - 4 AS most FROM pg_settings WHERE name = 'track_activity_query_size'
)
SELECT a.pid, coalesce(r.rolname::text, '') AS role, a.application_name AS application,
       coalesce(a.state, 'unknown') AS state,
       a.backend_start, coalesce(a.state_change, a.backend_start) AS state_change,
       a.xact_start, a.query_start, a.wait_event, host(a.client_addr) AS client,
       greatest(statement_timestamp() - coalesce(a.state_change, a.backend_start), interval '0')
         AS state_age,
       greatest(statement_timestamp() - a.query_start, interval '0') AS query_age,
       coalesce(q.keyword, '') AS statement,
       coalesce(left(btrim(regexp_replace(t.text, '\s+', ' ', 'g')), 200), '') AS text,
       CASE WHEN a.wait_event_type = 'Lock' THEN pg_blocking_pids(a.pid) ELSE '{}'::int[] END
         AS blocked_by,
       CASE
         WHEN r.oid IS NULL THEN 'its role is unknown'
         WHEN cardinality($1::text[]) = 0
           THEN 'no role of the application is named (app_roles)'
         WHEN r.rolname <> ALL ($1::text[])
           THEN 'role ' || r.rolname || ' is not one of the application''s'
         WHEN a.application_name ~* '^(pg_|vacuumdb|reindexdb|clusterdb|pgbackrest|barman|repmgr)'
           THEN 'it is ' || a.application_name
         WHEN a.application_name ILIKE ANY ($3::text[])
           THEN 'it is ' || a.application_name || ', which spare_applications names'
         WHEN a.wait_event = 'SyncRep'
           THEN 'its commit waits for a synchronous standby'
         WHEN q.bare ~* '^[\s(;]*(commit|end|prepare\s+transaction)\M'
           OR a.state = 'active' AND (a.query ~* q.ends OR q.bare ~* q.ends)
           THEN 'it ends its transaction already'
         WHEN q.keyword IS NULL AND a.state IS DISTINCT FROM 'idle'
           THEN 'its statement cannot be told'
         WHEN octet_length(a.query) >= (SELECT most FROM shown)
           THEN 'its statement is longer than track_activity_query_size shows'
         WHEN a.query ~* q.kept OR q.bare ~* q.kept
           THEN 'its statement copies data, runs a procedure, or changes or maintains the schema'
         WHEN h.changes_schema
           THEN 'its transaction changes or maintains the schema'
         WHEN h.is_leader
           THEN 'it holds an advisory lock, as a leader does'
         WHEN q.keyword IN ('DECLARE', 'FETCH', 'MOVE') OR a.backend_xid IS NULL AND
              (h.dumps OR a.backend_xmin IS NOT NULL AND a.state LIKE 'idle in transaction%')
           THEN 'it reads under one snapshot or cursor, as a dump or an export does'
       END AS protected,
       current_setting('is_superuser')::bool
         OR (NOT r.rolsuper AND (pg_has_role(current_user, r.oid, 'USAGE')
                                 OR pg_has_role(current_user, 'pg_signal_backend', 'USAGE')))
         AS signable
FROM pg_stat_activity a
LEFT JOIN pg_roles r ON r.oid = a.usesysid
LEFT JOIN held h ON h.pid = a.pid
CROSS JOIN LATERAL (
  SELECT b.bare,
         upper(substring(b.bare FROM '^[\s(;]*([A-Za-z]+)')) AS keyword,
         '(^|;)[\s(]*(copy|vacuum|analy[sz]e|reindex|create|alter|drop|truncate|refresh|cluster'
           '|do|call)\M' AS kept,
         '(^|;)[\s(]*(commit|end|prepare|rollback|abort)\M' AS ends
  FROM (SELECT regexp_replace(regexp_replace(a.query, '/\*.*?\*/', ' ', 'g'),
                              '--[^\n]*', ' ', 'g') AS bare) b
) q
CROSS JOIN LATERAL (
  SELECT regexp_replace(regexp_replace(
           CASE WHEN x.safe ~ '/\*([^*/]|\*[^/]|/[^*])*/\*' THEN split_part(x.safe, '/*', 1)
                ELSE x.safe END,
           $$'[^']*'|"[^"]*"|/\*([^*]|\*+[^*/])*\*+/|--[^\n]*|(?<![\w$])[0-9][\w.]*$$, '?', 'g'),
         $$('|"|/\*|\*/|\$\w*\$).*$$, '...') AS text
  FROM (SELECT CASE WHEN position(E'\\' IN a.query) > 0
                    THEN substring(a.query FROM $$^[^'"\\]*$$) ELSE a.query END AS safe) x
) t
WHERE a.backend_type = 'client backend' AND a.datname = current_database()
  AND a.pid <> pg_backend_pid() AND a.application_name <> 'remediator'
  AND ($2::int[] IS NULL OR a.pid = ANY ($2::int[]))
"""
"""Client sessions of the database but ours, as one snapshot.

$1 the application's roles; $2 only these pids, or null; $3 LIKE patterns of applications that are
spared. pg_blocking_pids stops the lock manager, so it is asked for waiting sessions only.

A transaction is protected, not its last statement alone: by the locks that it holds. A dump under
any name locks tables but none of their indexes; one that reads under a single snapshot (an export,
an open cursor) keeps it between its statements, which no ordinary transaction does.
"""

_GUARD = f"""
FROM ({SESSIONS}) AS s
WHERE s.protected IS NULL AND cardinality(s.blocked_by) = 0 AND s.backend_start = $4
"""
_IDLE = "AND s.state_change = $5 AND s.state LIKE 'idle in transaction%' AND s.state_age >= $6"
_ACTIVE = "AND s.query_start = $5 AND s.state = 'active' AND s.query_age >= $6"

SIGNALS = {
    "end_sessions": "SELECT pg_terminate_backend(s.pid) AS sent" + _GUARD + _IDLE,
    "cancel_queries": "SELECT pg_cancel_backend(s.pid) AS sent" + _GUARD + _ACTIVE,
    "end_queries": "SELECT pg_terminate_backend(s.pid) AS sent" + _GUARD + _ACTIVE,
}
"""By kind: signal one session if it is still exactly the one that was meant.

$4 backend_start, $5 state_change or query_start, $6 least age. No row: it is not.
"""

IDENTITIES = """
SELECT pid, backend_start, query_start, state FROM pg_stat_activity WHERE pid = ANY ($1::int[])
"""
"""What is now behind these pids. Without the right to see a session its columns are null."""
