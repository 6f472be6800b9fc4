"""Alembic's entry: makes the SQL for one dialect. The database itself is not touched here."""

from alembic import context

context.configure(
    dialect_name=context.config.attributes["dialect"],
    as_sql=True,
    # Whoever runs the script has a transaction around it.
    transactional_ddl=False,
)
context.run_migrations()
