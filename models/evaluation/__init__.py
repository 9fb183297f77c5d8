"""Measure the accuracy, computation and agreement of networks and engines."""
