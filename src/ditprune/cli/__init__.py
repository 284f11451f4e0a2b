"""The command line: one file per verb; flags are recipe fields are JSON keys."""
