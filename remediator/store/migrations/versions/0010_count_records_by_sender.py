"""Count the records of each sender, and the alerts that a digest gathers."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Apply it."""
    # empty for what a playbook takes, and for what a process of the version before records
    op.add_column("incidents", sa.Column("sender", sa.String(length=200), nullable=True))
    op.add_column("incidents", sa.Column("gathered", sa.Integer(), nullable=True))
    kept = sa.text("sender IS NOT NULL")
    op.create_index(
        "ix_incidents_sender",
        "incidents",
        ("sender", "opened_at"),
        sqlite_where=kept,
        postgresql_where=kept,
    )
