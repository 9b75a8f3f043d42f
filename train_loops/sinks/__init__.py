"""Where metrics go: one file per sink."""
