"""Redis: names, function calls as values, the client that makes them, and the journals."""
