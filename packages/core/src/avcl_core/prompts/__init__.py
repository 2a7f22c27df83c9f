"""Prompts: learned or generated rows that frozen towers read beside their own tokens."""
