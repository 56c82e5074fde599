"""Triage in slices: how far a delivery is taken, how often that was tried, what gathers its alerts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply it."""
    zero = sa.text("0")
    op.add_column(
        "deliveries", sa.Column("taken", sa.Integer(), nullable=False, server_default=zero)
    )
    op.add_column(
        "deliveries", sa.Column("attempts", sa.Integer(), nullable=False, server_default=zero)
    )
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.add_column("deliveries", sa.Column("records", json, nullable=True))
