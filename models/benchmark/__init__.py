"""Measure the time of engines against the MACs that they execute."""
