"""Commands of operators: retention, figures, settings of servers, access rules."""
