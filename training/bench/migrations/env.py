"""Runs the migrations within the transaction of the connection it is given."""

from alembic import context

from lrenv.training.bench.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=context.config.attributes["version_table"],
)
context.run_migrations()
