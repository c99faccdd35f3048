"""Back-off, batches, and text that may be lost."""
