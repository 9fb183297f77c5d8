"""Training: supervised pre-training (SP) and hybrid reinforcement learning (HRL), in runs that can be resumed."""
