"""The migrations of the database.

A change of the schema is a new file `versions/NNNN_what.py`, with revision `NNNN` and the one before it as
down_revision; HEAD becomes `NNNN`. The numbers are padded, so that newer sorts after older.
"""

HEAD = "0001"
VERSION_TABLE = "imcore_version"
"""Not Alembic's usual name: the database may be shared with a program that has migrations of its own."""
