"""Servers, sessions, rounds, and the figures that are shown and saved."""
