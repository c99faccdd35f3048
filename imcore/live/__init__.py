"""Live sessions: what a session knows, who is told what, and the local database of a client."""
