"""The model card: the README.md of a checkpoint, with the figures of its config.json and analysis.json."""
