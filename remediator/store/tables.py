"""The schema, once for SQLite and PostgreSQL.

Instants are whole microseconds since 1970 in UTC, so that both databases compare and store
them alike. An incident's row is its place in the queue; a mitigation's row is its ledger entry.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from remediator.store.columns import Instant, Json, Length, RowId, Words

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    clause = text(where)
    return Index(name, *columns, unique=unique, sqlite_where=clause, postgresql_where=clause)


def _flagged(name: str, *columns: str, flag: str, unique: bool = False) -> Index:
    """Index the rows in which a boolean is set, as each database has to be asked for them."""
    return Index(
        name,
        *columns,
        unique=unique,
        sqlite_where=text(f"{flag} = 1"),  # a bare column would serve no statement of ours there
        postgresql_where=text(flag),
    )


def _incident_id(**options: Any) -> Column[Any]:
    return Column("incident_id", String(40), ForeignKey("incidents.id"), nullable=False, **options)


deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("source", String(20), nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("credential", String(200)),
    Column("digest", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("replay_of", String(200)),
    Column("dry_run", Boolean, nullable=False),
    Column("playbook", String(200)),
    Column("alerts", Integer, nullable=False),
    Column("dead", Integer, nullable=False),
    Column("triaged_at", Instant),
    Column("incidents", Json, nullable=False),
    Column("taken", Integer, nullable=False, server_default=text("0")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("records", Json),
    _partial("ix_deliveries_untriaged", "received_at", where="triaged_at IS NULL"),
    Index("ix_deliveries_received", "received_at", "id"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("delivery_id", String(40), ForeignKey("deliveries.id"), nullable=False, index=True),
    Column("source", String(20), nullable=False),
    Column("at", Instant, nullable=False),
    Column("position", Integer),
    Column("reason", Words, nullable=False),
    Column("excerpt", Words, nullable=False),
    Index("ix_dead_letters_at", "at", "id"),
)

events = Table(
    "events",
    metadata,
    Column("delivery_id", String(40), ForeignKey("deliveries.id"), primary_key=True),
    Column("id", String(128), nullable=False, unique=True),
    Column("webhook", String(128), unique=True),
    Column("kind", String(60), nullable=False),
    Column("status", String(10)),
    Column("again", Boolean, nullable=False),
    Column("incident", String(64), index=True),
    Column("key", Words),
    Column("agent", Json),
    Column("at", Instant, nullable=False),
    Column("alerts", Json, nullable=False),
    Column("reason", Words, nullable=False),
    Column("applied", Boolean, nullable=False),
    Column("due_at", Instant),
    Column("lease_until", Instant),
    Column("epoch", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    _partial("ix_events_due", "due_at", where="due_at IS NOT NULL"),
)

signing_secrets = Table(
    "signing_secrets",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("verified_at", Instant),
    Column("told_at", Instant),
)

incidents = Table(
    "incidents",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("correlation_key", Text, nullable=False, index=True),
    Column("state", String(10), nullable=False),
    Column("phase", String(20), nullable=False),
    Column("phase_since", Instant, nullable=False),
    Column("outcome", String(20)),
    Column("reason", Words, nullable=False),
    Column("system", Text),
    Column("service", Text),
    Column("playbook", Text),
    Column("dry_run", Boolean, nullable=False),
    Column("replay_of", String(200)),
    Column("round", Integer, nullable=False),
    Column("proposal", Json),
    Column("opened_at", Instant, nullable=False),
    Column("closed_at", Instant),
    Column("due_at", Instant),
    Column("poked", Boolean, nullable=False),
    Column("lease_until", Instant),
    Column("owner", String(100)),
    Column("epoch", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("progressed_at", Instant, nullable=False),
    Column("severity", Integer, nullable=False, server_default=text("3")),
    Column("severity_word", Words, nullable=False, server_default=text("''")),
    Column("handling", String(10), nullable=False, server_default=text("'acts'")),
    Column("rank", Integer, nullable=False, server_default=text("6")),
    Column("sender", String(200)),
    Column("gathered", Integer),
    _partial(
        "ux_incidents_open",
        "correlation_key",
        where="state = 'open' AND replay_of IS NULL",
        unique=True,
    ),
    _partial("ix_incidents_due", "due_at", where="due_at IS NOT NULL"),
    _partial("ix_incidents_ranked", "rank", "due_at", where="due_at IS NOT NULL"),
    _partial("ix_incidents_still_open", "opened_at", where="state = 'open'"),
    _partial(
        "ix_incidents_replayed", "opened_at", where="state = 'open' AND replay_of IS NOT NULL"
    ),
    _partial("ix_incidents_sender", "sender", "opened_at", where="sender IS NOT NULL"),
    Index("ix_incidents_opened", "opened_at", "id"),
    Index("ix_incidents_service", "system", "service", "opened_at"),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", String(40), primary_key=True),
    _incident_id(index=True),
    Column("fingerprint", Text, nullable=False),
    Column("source", String(20), nullable=False),
    Column("status", String(10), nullable=False),
    Column("labels", Json, nullable=False),
    Column("annotations", Json, nullable=False),
    Column("group_key", Text),
    Column("starts_at", Instant, nullable=False),
    Column("ends_at", Instant),
    Column("first_seen_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Column("resolved_at", Instant),
    Column("notifications", Integer, nullable=False),
    Column("latest", Boolean, nullable=False),
    _flagged("ux_alerts_latest", "fingerprint", flag="latest", unique=True),
    _partial("ix_alerts_reported", "group_key", where="source = 'pagerduty'"),
)

findings = Table(
    "findings",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    _incident_id(index=True),
    Column("round", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("name", Text, nullable=False),
    Column("status", String(10), nullable=False),
    Column("summary", Words, nullable=False),
    Column("value", Json),
)

mitigations = Table(
    "mitigations",
    metadata,
    Column("id", String(40), primary_key=True),
    _incident_id(index=True),
    Column("effect_key", Text, nullable=False),
    Column("system", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("playbook", Text, nullable=False),
    Column("target_key", Text, nullable=False),
    Column("kind", String(100), nullable=False),
    Column("mitigation", Json, nullable=False),
    Column("mode", String(10), nullable=False),
    Column("state", String(20), nullable=False),
    Column("in_flight", Boolean, nullable=False),
    Column("reason", Words, nullable=False),
    Column("plan_hash", String(16), nullable=False),
    Column("before", Json, nullable=False),
    Column("undo", Json),
    Column("items", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("reserved_at", Instant),
    Column("apply_before", Instant),
    Column("expires_at", Instant),
    Column("answer_within", Length),
    Column("asked_at", Instant),
    Column("finished_at", Instant),
    Column("decided_by", String(200)),
    Column("approvals_needed", Integer, nullable=False),
    Column("approvals", Json, nullable=False),
    Column("verdict", String(20)),
    Column("evidence", Words, nullable=False),
    UniqueConstraint("effect_key"),
    _flagged("ux_mitigations_in_flight", "target_key", flag="in_flight", unique=True),
    Index("ix_mitigations_target", "target_key", "reserved_at"),
    _partial("ix_mitigations_reserved", "reserved_at", where="reserved_at IS NOT NULL"),
)

obligations = Table(
    "obligations",
    metadata,
    Column("mitigation_id", String(40), ForeignKey("mitigations.id"), primary_key=True),
    Column("due_at", Instant, nullable=False),
    Column("lease_until", Instant),
    Column("epoch", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Index("ix_obligations_due", "due_at"),
)

samples = Table(
    "samples",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("mitigation_id", String(40), ForeignKey("mitigations.id"), nullable=False, index=True),
    Column("at", Instant, nullable=False),
    Column("assessment", String(20), nullable=False),
    Column("evidence", Words, nullable=False),
    Column("data", Json, nullable=False),
)

journal = Table(
    "journal",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("incident_id", String(40), ForeignKey("incidents.id"), index=True),
    Column("at", Instant, nullable=False),
    Column("step", String(20), nullable=False),
    Column("event", String(60), nullable=False),
    Column("reason", Words, nullable=False),
    Column("data", Json, nullable=False),
    Column("number", BigInteger),
    Column("mac", String(80)),
)

chains = Table(
    "chains",
    metadata,
    Column("chain", String(40), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("mac", String(80), nullable=False),
    Column("seal", String(80), nullable=False),
)

pauses = Table(
    "pauses",
    metadata,
    Column("scope", String(400), primary_key=True),
    Column("by", String(200), nullable=False),
    Column("reason", Words, nullable=False),
    Column("since", Instant, nullable=False),
)

clicks = Table(
    "clicks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", Instant, nullable=False),
)

maintenance = Table(
    "maintenance",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("scope", String(400), nullable=False),
    Column("since", Instant, nullable=False),
    Column("until", Instant, nullable=False),
    Column("reason", Words, nullable=False),
    Column("by", String(200), nullable=False),
    Column("ordered_at", Instant, nullable=False),
    Column("ended_at", Instant),
    Column("ended_by", String(200)),
    Index("ix_maintenance_until", "until"),
)

notices = Table(
    "notices",
    metadata,
    Column("incident_id", String(40), ForeignKey("incidents.id"), primary_key=True),
    Column("wanted", Integer, nullable=False),
    Column("sent", Integer, nullable=False),
    Column("due_at", Instant),
    Column("lease_until", Instant),
    Column("epoch", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("handle", Json),
    Column("posts", Json),
    Column("last_error", Words, nullable=False),
    Column("rank", Integer, nullable=False, server_default=text("6")),
    Column("channel", String(200)),
    _partial("ix_notices_due", "due_at", where="due_at IS NOT NULL"),
    _partial("ix_notices_ranked", "rank", "due_at", where="due_at IS NOT NULL"),
)

escalations = Table(
    "escalations",
    metadata,
    Column("incident_id", String(40), ForeignKey("incidents.id"), primary_key=True),
    Column("since", Instant),
    Column("level", Integer, nullable=False),
    Column("acknowledged_at", Instant),
    Column("acknowledged_by", String(200)),
    Column("echoed", Boolean, nullable=False, default=False),
    Column("ended_at", Instant),
    Column("due_at", Instant),
    _partial("ix_escalations_due", "due_at", where="due_at IS NOT NULL"),
)

tellings = Table(
    "tellings",
    metadata,
    Column("id", String(400), primary_key=True),
    _incident_id(index=True),
    Column("channel", String(200), nullable=False),
    Column("word", String(20), nullable=False),
    Column("subject", String(100), nullable=False),
    Column("state", String(10), nullable=False),
    Column("due_at", Instant),
    Column("lease_until", Instant),
    Column("epoch", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Words, nullable=False),
    Column("rank", Integer, nullable=False, server_default=text("3")),
    Column("kind", Text, nullable=False, server_default=text("''")),
    Column("told_at", Instant),
    Column("told_with", String(40)),
    _partial("ix_tellings_due", "channel", "due_at", where="due_at IS NOT NULL"),
    _partial("ix_tellings_ranked", "channel", "rank", "due_at", where="due_at IS NOT NULL"),
    _partial("ix_tellings_told", "channel", "told_at", where="told_at IS NOT NULL"),
    _partial("ix_tellings_told_with", "told_with", where="told_with IS NOT NULL"),
)
