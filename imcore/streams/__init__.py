"""The side of Redis: names, function calls as values, the link that carries them, and the journal."""
