"""The embedded server: a private Valkey or Redis in the data directory."""
