"""The parts of `im demo`: a group and its sessions, a story of them, and the claims that are checked."""
