"""Migrations of the policy database, run by alembic; one file of ``versions/`` a change."""
