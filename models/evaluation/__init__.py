"""Measure networks and engines: accuracy, computation, the accuracy-compute curve and agreement."""
