"""Repair: the state Redis should have, the difference, and its removal."""
