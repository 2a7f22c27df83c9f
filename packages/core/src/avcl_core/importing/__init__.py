"""Checkpoints of the papers' own code as runs of ours: keys and shapes say what the model is, and nothing is guessed."""
