"""The side of the SQL database: rows, tables, views, and how they are written fast on SQLite and PostgreSQL."""
