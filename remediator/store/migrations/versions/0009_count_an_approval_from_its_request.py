"""Count the time of an approval from when its request was delivered."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apply it."""
    # empty where the time counts from the decision, as an older version has it
    op.add_column("mitigations", sa.Column("answer_within", sa.BigInteger(), nullable=True))
    op.add_column("mitigations", sa.Column("asked_at", sa.BigInteger(), nullable=True))
