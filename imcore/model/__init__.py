"""Values, limits and rows: words and rules, no I/O."""
