"""Writes groups, and the data of one user, as events that `imcore.importer` replays."""
