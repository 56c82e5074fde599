"""Keep the severity of an incident, what may be done about it, and its place in the queue."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply it."""
    # a process of the version before opens incidents with these; the rank is that of 3, acts
    added = (
        sa.Column("severity", sa.Integer(), server_default=sa.text("3"), nullable=False),
        sa.Column("severity_word", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "handling", sa.String(length=10), server_default=sa.text("'acts'"), nullable=False
        ),
        sa.Column("rank", sa.Integer(), server_default=sa.text("6"), nullable=False),
    )
    for column in added:
        op.add_column("incidents", column)
