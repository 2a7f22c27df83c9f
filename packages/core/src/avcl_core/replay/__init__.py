"""Memories of past samples and how they are chosen."""
