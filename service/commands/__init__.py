"""The verbs of `skipnet`, one module each; importing a verb must not import the others'."""
