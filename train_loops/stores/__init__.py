"""Where bytes go: datasets, models, logs, results."""
