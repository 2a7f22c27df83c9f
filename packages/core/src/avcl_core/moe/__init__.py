"""Mixtures of audio-visual adapters: resampling, experts, router, and the adapter that joins them (AVMOE)."""
