"""The engine: data, tasks, Algorithm 1, training and evaluation. Knows nothing of the command line."""
