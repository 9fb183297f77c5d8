"""SkipNet's networks: building, counting, training and running them. Knows nothing of HTTP."""
