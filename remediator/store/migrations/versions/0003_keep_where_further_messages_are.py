"""Keep where the further messages about an incident are, such as a request for an approval."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply it."""
    # a column of its own: an older version beside this one refuses a handle with unknown keys
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.add_column("notices", sa.Column("posts", json, nullable=True))
