"""Tasks, wired: data, model, metric and decoding."""
