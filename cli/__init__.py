"""The command line `im`."""
