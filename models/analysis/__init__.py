"""Analyse the routes of images: executed blocks, stability of the decisions, adversarial inputs."""
