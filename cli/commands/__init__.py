"""The commands, a module for each that needs imports of its own."""
