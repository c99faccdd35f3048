"""The parts of `im demo`: a story, the account that an oracle keeps of it, and the claims that are checked."""
