"""The script of Alembic: runs the migrations on the connection from `imcore.sql.migrations.run`."""

from alembic import context

from imcore.sql.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
