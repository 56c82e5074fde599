"""Run by Alembic: migrates on the connection that ``store/migrate.py`` holds."""

from alembic import context

from remediator.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
