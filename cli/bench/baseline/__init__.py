"""The naive design that the storm is held against: a stored receipt for each recipient."""
