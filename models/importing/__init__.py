"""Checkpoints of the public SkipNet code: convert them, and check that the outputs agree."""
