"""Seal the journal: a number and a seal for each line, and how far each chain goes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply it."""
    # empty in lines that an older version wrote, or writes beside this one
    op.add_column("journal", sa.Column("number", sa.BigInteger(), nullable=True))
    op.add_column("journal", sa.Column("mac", sa.String(length=80), nullable=True))
    op.create_table(
        "chains",
        sa.Column("chain", sa.String(length=40), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.String(length=80), nullable=False),
        sa.Column("seal", sa.String(length=80), nullable=False),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_chains")),
    )
