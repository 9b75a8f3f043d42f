"""Alembic's entry point, run by `migrate` with its connection inside an open transaction."""

from alembic import context

from serve_app.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
