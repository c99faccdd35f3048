"""Files and folders: locks, permissions, compressed input."""
