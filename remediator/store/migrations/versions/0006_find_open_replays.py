"""Find the open replays by an index: every triage asks for them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply it."""
    which = sa.text("state = 'open' AND replay_of IS NOT NULL")
    op.create_index(
        "ix_incidents_replayed",
        "incidents",
        ["opened_at"],
        sqlite_where=which,
        postgresql_where=which,
    )
