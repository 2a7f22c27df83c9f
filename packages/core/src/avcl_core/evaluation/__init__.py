"""Evaluation: continual-learning definitions, the result matrix, and the record and summary of one run."""
