"""The statements that we run on a database that we watch. Constants: values are parameters only.

Query text is looked at inside the server and never leaves it; only its first keyword does.
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

SESSIONS = r"""
SELECT a.pid, coalesce(r.rolname::text, '') AS role, a.application_name AS application,
       coalesce(a.state, 'unknown') AS state,
       a.backend_start, coalesce(a.state_change, a.backend_start) AS state_change,
       a.xact_start, a.query_start,
       greatest(statement_timestamp() - coalesce(a.state_change, a.backend_start), interval '0')
         AS state_age,
       greatest(statement_timestamp() - a.query_start, interval '0') AS query_age,
       coalesce(q.keyword, '') AS statement,
       CASE WHEN a.wait_event_type = 'Lock' THEN pg_blocking_pids(a.pid) ELSE '{}'::int[] END
         AS blocked_by,
       CASE
         WHEN r.oid IS NULL THEN 'its role is unknown'
         WHEN cardinality($1::text[]) > 0 AND r.rolname <> ALL ($1::text[])
           THEN 'role ' || r.rolname || ' is not one of the application''s'
         WHEN cardinality($1::text[]) = 0 AND r.rolsuper
           THEN 'role ' || r.rolname || ' is a superuser'
         WHEN cardinality($1::text[]) = 0 AND r.rolreplication
           THEN 'role ' || r.rolname || ' may replicate'
         WHEN cardinality($1::text[]) = 0 AND EXISTS (
           SELECT FROM pg_roles p
           WHERE p.rolname LIKE 'pg\_%' AND p.rolname <> 'pg_database_owner'
             AND pg_has_role(r.oid, p.oid, 'MEMBER'))
           THEN 'role ' || r.rolname || ' has a predefined role; name it in app_roles if it is'
             ' the application''s'
         WHEN a.application_name ~* '^(pg_|vacuumdb|reindexdb|clusterdb|pgbackrest|barman|repmgr)'
           THEN 'it is ' || a.application_name
         WHEN q.keyword IS NULL AND a.state IS DISTINCT FROM 'idle'
           THEN 'its statement cannot be told'
         WHEN a.query ~* q.kept OR q.bare ~* q.kept
           THEN 'its statement copies data or changes or maintains the schema'
       END AS protected,
       current_setting('is_superuser')::bool
         OR (NOT r.rolsuper AND (pg_has_role(current_user, r.oid, 'USAGE')
                                 OR pg_has_role(current_user, 'pg_signal_backend', 'USAGE')))
         AS signable
FROM pg_stat_activity a
LEFT JOIN pg_roles r ON r.oid = a.usesysid
CROSS JOIN LATERAL (
  SELECT b.bare,
         upper(substring(b.bare FROM '^[\s(;]*([A-Za-z]+)')) AS keyword,
         '(^|;)[\s(]*(copy|vacuum|analy[sz]e|reindex|create|alter|drop|truncate|refresh|cluster)\M'
           AS kept
  FROM (SELECT regexp_replace(regexp_replace(a.query, '/\*.*?\*/', ' ', 'g'),
                              '--[^\n]*', ' ', 'g') AS bare) b
) q
WHERE a.backend_type = 'client backend' AND a.datname = current_database()
  AND a.pid <> pg_backend_pid() AND a.application_name <> 'remediator'
  AND ($2::int[] IS NULL OR a.pid = ANY ($2::int[]))
"""
"""Client sessions of the database but ours, as one snapshot.

$1 the application's roles, or none for a guess by their rights; $2 only these pids, or null.
pg_blocking_pids stops the lock manager, so it is asked for waiting sessions only.
"""

_GUARD = f"""
FROM ({SESSIONS}) AS s
WHERE s.protected IS NULL AND cardinality(s.blocked_by) = 0 AND s.backend_start = $3
"""
_IDLE = "AND s.state_change = $4 AND s.state LIKE 'idle in transaction%' AND s.state_age >= $5"
_ACTIVE = "AND s.query_start = $4 AND s.state = 'active' AND s.query_age >= $5"

SIGNALS = {
    "end_sessions": "SELECT pg_terminate_backend(s.pid) AS sent" + _GUARD + _IDLE,
    "cancel_queries": "SELECT pg_cancel_backend(s.pid) AS sent" + _GUARD + _ACTIVE,
    "end_queries": "SELECT pg_terminate_backend(s.pid) AS sent" + _GUARD + _ACTIVE,
}
"""By kind: signal one session if it is still exactly the one that was meant.

$3 backend_start, $4 state_change or query_start, $5 least age. No row: it is not.
"""

IDENTITIES = """
SELECT pid, backend_start, query_start, state FROM pg_stat_activity WHERE pid = ANY ($1::int[])
"""
"""What is now behind these pids. Without the right to see a session its columns are null."""
