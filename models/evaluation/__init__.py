"""Measuring networks and engines: accuracy, computation, the compute dial's curve, and whether two agree."""
