"""The public code's checkpoints: reading them, and proving that the answers are the same."""
