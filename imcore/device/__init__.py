"""A user's client on one device: its local database, its outbox, its live session."""
