"""The model card: the README.md of a checkpoint, whose figures come from its config.json and analysis.json."""
