"""Index what history makes slow: changes of a target, and flags as SQLite is asked for them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply it."""
    op.create_index("ix_mitigations_target", "mitigations", ["target_key", "reserved_at"])
    if op.get_bind().dialect.name != "sqlite":
        return
    # "WHERE in_flight = 1" is not served by an index "WHERE in_flight" there
    for name, table, column, flag in (
        ("ux_mitigations_in_flight", "mitigations", "target_key", "in_flight"),
        ("ux_alerts_latest", "alerts", "fingerprint", "latest"),
    ):
        op.drop_index(name, table_name=table)
        op.create_index(name, table, [column], unique=True, sqlite_where=sa.text(f"{flag} = 1"))
