"""Calls of the Redis functions, as values."""
