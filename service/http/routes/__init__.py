"""What the service answers, one module per group of routes."""
