"""Order what is due by severity: work, messages and pages; pages of one kind as one."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply it."""
    # the defaults are those of severity 3: a process of the version before asks without a rank
    op.add_column(
        "notices", sa.Column("rank", sa.Integer(), server_default=sa.text("6"), nullable=False)
    )
    op.add_column("notices", sa.Column("channel", sa.String(length=200), nullable=True))
    told = (
        sa.Column("rank", sa.Integer(), server_default=sa.text("3"), nullable=False),
        sa.Column("kind", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("told_at", sa.BigInteger(), nullable=True),
        sa.Column("told_with", sa.String(length=40), nullable=True),
    )
    for column in told:
        op.add_column("tellings", column)
    for name, table, *columns in (
        ("ix_incidents_ranked", "incidents", "rank", "due_at"),
        ("ix_notices_ranked", "notices", "rank", "due_at"),
        ("ix_tellings_ranked", "tellings", "channel", "rank", "due_at"),
        ("ix_tellings_told", "tellings", "channel", "told_at"),
        ("ix_tellings_told_with", "tellings", "told_with"),
    ):
        kept = sa.text(f"{columns[-1]} IS NOT NULL")
        op.create_index(name, table, columns, sqlite_where=kept, postgresql_where=kept)
