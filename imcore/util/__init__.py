"""Batches, back-off, throttled warnings, and output that may be lost."""
