"""Trainable modules that are added to frozen towers."""
