"""Logs of the processes: their form, and what never gets into them."""
