"""Replays events of chat from files."""
