"""Procedures: losses, updates and passes before and after an experience. One file each."""
