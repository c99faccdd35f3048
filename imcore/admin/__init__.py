"""What operators do: check, rebuild, reconcile, trim, dead letters, figures, access rules."""
