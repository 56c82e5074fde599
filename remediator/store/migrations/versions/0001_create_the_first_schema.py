"""Create the first schema."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def instant() -> sa.BigInteger:
    """Microseconds since 1970."""
    return sa.BigInteger()


def document() -> sa.types.TypeEngine[Any]:
    """JSON; jsonb on PostgreSQL."""
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "clicks",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("at", instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clicks")),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("source", sa.String(length=20), nullable=False),
        sa.Column("received_at", instant(), nullable=False),
        sa.Column("credential", sa.String(length=200), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("replay_of", sa.String(length=200), nullable=True),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("playbook", sa.String(length=200), nullable=True),
        sa.Column("alerts", sa.Integer(), nullable=False),
        sa.Column("dead", sa.Integer(), nullable=False),
        sa.Column("triaged_at", instant(), nullable=True),
        sa.Column("incidents", document(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index("ix_deliveries_received", "deliveries", ["received_at", "id"], unique=False)
    op.create_index(
        "ix_deliveries_untriaged",
        "deliveries",
        ["received_at"],
        unique=False,
        sqlite_where=sa.text("triaged_at IS NULL"),
        postgresql_where=sa.text("triaged_at IS NULL"),
    )
    op.create_table(
        "incidents",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("correlation_key", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("phase", sa.String(length=20), nullable=False),
        sa.Column("phase_since", instant(), nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("system", sa.Text(), nullable=True),
        sa.Column("service", sa.Text(), nullable=True),
        sa.Column("playbook", sa.Text(), nullable=True),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("replay_of", sa.String(length=200), nullable=True),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("proposal", document(), nullable=True),
        sa.Column("opened_at", instant(), nullable=False),
        sa.Column("closed_at", instant(), nullable=True),
        sa.Column("due_at", instant(), nullable=True),
        sa.Column("poked", sa.Boolean(), nullable=False),
        sa.Column("lease_until", instant(), nullable=True),
        sa.Column("owner", sa.String(length=100), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("progressed_at", instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incidents")),
    )
    op.create_index(
        op.f("ix_incidents_correlation_key"), "incidents", ["correlation_key"], unique=False
    )
    op.create_index(
        "ix_incidents_due",
        "incidents",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index("ix_incidents_opened", "incidents", ["opened_at", "id"], unique=False)
    op.create_index(
        "ix_incidents_service", "incidents", ["system", "service", "opened_at"], unique=False
    )
    op.create_index(
        "ix_incidents_still_open",
        "incidents",
        ["opened_at"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "ux_incidents_open",
        "incidents",
        ["correlation_key"],
        unique=True,
        sqlite_where=sa.text("state = 'open' AND replay_of IS NULL"),
        postgresql_where=sa.text("state = 'open' AND replay_of IS NULL"),
    )
    op.create_table(
        "maintenance",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("scope", sa.String(length=400), nullable=False),
        sa.Column("since", instant(), nullable=False),
        sa.Column("until", instant(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("ordered_at", instant(), nullable=False),
        sa.Column("ended_at", instant(), nullable=True),
        sa.Column("ended_by", sa.String(length=200), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_maintenance")),
    )
    op.create_index("ix_maintenance_until", "maintenance", ["until"], unique=False)
    op.create_table(
        "pauses",
        sa.Column("scope", sa.String(length=400), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", instant(), nullable=False),
        sa.PrimaryKeyConstraint("scope", name=op.f("pk_pauses")),
    )
    op.create_table(
        "signing_secrets",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("verified_at", instant(), nullable=True),
        sa.Column("told_at", instant(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_signing_secrets")),
    )
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("incident_id", sa.String(length=40), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=20), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("labels", document(), nullable=False),
        sa.Column("annotations", document(), nullable=False),
        sa.Column("group_key", sa.Text(), nullable=True),
        sa.Column("starts_at", instant(), nullable=False),
        sa.Column("ends_at", instant(), nullable=True),
        sa.Column("first_seen_at", instant(), nullable=False),
        sa.Column("last_seen_at", instant(), nullable=False),
        sa.Column("resolved_at", instant(), nullable=True),
        sa.Column("notifications", sa.Integer(), nullable=False),
        sa.Column("latest", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["incident_id"], ["incidents.id"], name=op.f("fk_alerts_incident_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
    )
    op.create_index(op.f("ix_alerts_incident_id"), "alerts", ["incident_id"], unique=False)
    op.create_index(
        "ix_alerts_reported",
        "alerts",
        ["group_key"],
        unique=False,
        sqlite_where=sa.text("source = 'pagerduty'"),
        postgresql_where=sa.text("source = 'pagerduty'"),
    )
    op.create_index(
        "ux_alerts_latest",
        "alerts",
        ["fingerprint"],
        unique=True,
        sqlite_where=sa.text("latest"),
        postgresql_where=sa.text("latest"),
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("delivery_id", sa.String(length=40), nullable=False),
        sa.Column("source", sa.String(length=20), nullable=False),
        sa.Column("at", instant(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("excerpt", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["deliveries.id"], name=op.f("fk_dead_letters_delivery_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
    )
    op.create_index("ix_dead_letters_at", "dead_letters", ["at", "id"], unique=False)
    op.create_index(
        op.f("ix_dead_letters_delivery_id"), "dead_letters", ["delivery_id"], unique=False
    )
    op.create_table(
        "escalations",
        sa.Column("incident_id", sa.String(length=40), nullable=False),
        sa.Column("since", instant(), nullable=True),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("acknowledged_at", instant(), nullable=True),
        sa.Column("acknowledged_by", sa.String(length=200), nullable=True),
        sa.Column("echoed", sa.Boolean(), nullable=False),
        sa.Column("ended_at", instant(), nullable=True),
        sa.Column("due_at", instant(), nullable=True),
        sa.ForeignKeyConstraint(
            ["incident_id"], ["incidents.id"], name=op.f("fk_escalations_incident_id")
        ),
        sa.PrimaryKeyConstraint("incident_id", name=op.f("pk_escalations")),
    )
    op.create_index(
        "ix_escalations_due",
        "escalations",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_table(
        "tellings",
        sa.Column("id", sa.String(length=400), nullable=False),
        sa.Column("incident_id", sa.String(length=40), nullable=False),
        sa.Column("channel", sa.String(length=200), nullable=False),
        sa.Column("word", sa.String(length=20), nullable=False),
        sa.Column("subject", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("due_at", instant(), nullable=True),
        sa.Column("lease_until", instant(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["incident_id"], ["incidents.id"], name=op.f("fk_tellings_incident_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tellings")),
    )
    op.create_index(op.f("ix_tellings_incident_id"), "tellings", ["incident_id"], unique=False)
    op.create_index(
        "ix_tellings_due",
        "tellings",
        ["channel", "due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_table(
        "events",
        sa.Column("delivery_id", sa.String(length=40), nullable=False),
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("webhook", sa.String(length=128), nullable=True),
        sa.Column("kind", sa.String(length=60), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=True),
        sa.Column("again", sa.Boolean(), nullable=False),
        sa.Column("incident", sa.String(length=64), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("agent", document(), nullable=True),
        sa.Column("at", instant(), nullable=False),
        sa.Column("alerts", document(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("applied", sa.Boolean(), nullable=False),
        sa.Column("due_at", instant(), nullable=True),
        sa.Column("lease_until", instant(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["deliveries.id"], name=op.f("fk_events_delivery_id")
        ),
        sa.PrimaryKeyConstraint("delivery_id", name=op.f("pk_events")),
        sa.UniqueConstraint("id", name=op.f("uq_events_id")),
        sa.UniqueConstraint("webhook", name=op.f("uq_events_webhook")),
    )
    op.create_index(
        "ix_events_due",
        "events",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_events_incident"), "events", ["incident"], unique=False)
    op.create_table(
        "findings",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("incident_id", sa.String(length=40), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("at", instant(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("value", document(), nullable=True),
        sa.ForeignKeyConstraint(
            ["incident_id"], ["incidents.id"], name=op.f("fk_findings_incident_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_findings")),
    )
    op.create_index(op.f("ix_findings_incident_id"), "findings", ["incident_id"], unique=False)
    op.create_table(
        "journal",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("incident_id", sa.String(length=40), nullable=True),
        sa.Column("at", instant(), nullable=False),
        sa.Column("step", sa.String(length=20), nullable=False),
        sa.Column("event", sa.String(length=60), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("data", document(), nullable=False),
        sa.ForeignKeyConstraint(
            ["incident_id"], ["incidents.id"], name=op.f("fk_journal_incident_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_journal")),
    )
    op.create_index(op.f("ix_journal_incident_id"), "journal", ["incident_id"], unique=False)
    op.create_table(
        "mitigations",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("incident_id", sa.String(length=40), nullable=False),
        sa.Column("effect_key", sa.Text(), nullable=False),
        sa.Column("system", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("playbook", sa.Text(), nullable=False),
        sa.Column("target_key", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=100), nullable=False),
        sa.Column("mitigation", document(), nullable=False),
        sa.Column("mode", sa.String(length=10), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("in_flight", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("plan_hash", sa.String(length=16), nullable=False),
        sa.Column("before", document(), nullable=False),
        sa.Column("undo", document(), nullable=True),
        sa.Column("items", document(), nullable=False),
        sa.Column("created_at", instant(), nullable=False),
        sa.Column("reserved_at", instant(), nullable=True),
        sa.Column("apply_before", instant(), nullable=True),
        sa.Column("expires_at", instant(), nullable=True),
        sa.Column("finished_at", instant(), nullable=True),
        sa.Column("decided_by", sa.String(length=200), nullable=True),
        sa.Column("approvals_needed", sa.Integer(), nullable=False),
        sa.Column("approvals", document(), nullable=False),
        sa.Column("verdict", sa.String(length=20), nullable=True),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["incident_id"], ["incidents.id"], name=op.f("fk_mitigations_incident_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mitigations")),
        sa.UniqueConstraint("effect_key", name=op.f("uq_mitigations_effect_key")),
    )
    op.create_index(
        op.f("ix_mitigations_incident_id"), "mitigations", ["incident_id"], unique=False
    )
    op.create_index(
        "ix_mitigations_reserved",
        "mitigations",
        ["reserved_at"],
        unique=False,
        sqlite_where=sa.text("reserved_at IS NOT NULL"),
        postgresql_where=sa.text("reserved_at IS NOT NULL"),
    )
    op.create_index(
        "ux_mitigations_in_flight",
        "mitigations",
        ["target_key"],
        unique=True,
        sqlite_where=sa.text("in_flight"),
        postgresql_where=sa.text("in_flight"),
    )
    op.create_table(
        "notices",
        sa.Column("incident_id", sa.String(length=40), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("sent", sa.Integer(), nullable=False),
        sa.Column("due_at", instant(), nullable=True),
        sa.Column("lease_until", instant(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("handle", document(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["incident_id"], ["incidents.id"], name=op.f("fk_notices_incident_id")
        ),
        sa.PrimaryKeyConstraint("incident_id", name=op.f("pk_notices")),
    )
    op.create_index(
        "ix_notices_due",
        "notices",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_table(
        "obligations",
        sa.Column("mitigation_id", sa.String(length=40), nullable=False),
        sa.Column("due_at", instant(), nullable=False),
        sa.Column("lease_until", instant(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["mitigation_id"], ["mitigations.id"], name=op.f("fk_obligations_mitigation_id")
        ),
        sa.PrimaryKeyConstraint("mitigation_id", name=op.f("pk_obligations")),
    )
    op.create_index("ix_obligations_due", "obligations", ["due_at"], unique=False)
    op.create_table(
        "samples",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("mitigation_id", sa.String(length=40), nullable=False),
        sa.Column("at", instant(), nullable=False),
        sa.Column("assessment", sa.String(length=20), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("data", document(), nullable=False),
        sa.ForeignKeyConstraint(
            ["mitigation_id"], ["mitigations.id"], name=op.f("fk_samples_mitigation_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_samples")),
    )
    op.create_index(op.f("ix_samples_mitigation_id"), "samples", ["mitigation_id"], unique=False)
