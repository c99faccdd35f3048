"""The parts of `im demo`: a throw-away stack, a story in two acts, and the claims that are checked on the way."""
