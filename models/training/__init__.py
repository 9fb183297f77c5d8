"""Training: supervised pre-training (SP) and hybrid reinforcement learning (HRL), as recipes that resume."""
