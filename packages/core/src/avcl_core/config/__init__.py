"""Typed, frozen configuration: an unknown key is an error with the nearest name and the line."""
