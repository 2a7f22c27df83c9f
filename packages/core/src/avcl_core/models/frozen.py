"""Frozen towers with heads and nothing else: linear probing, baselines with fixed features, and stages that train a head."""

from __future__ import annotations

from avcl_core.models.base import Model


class Frozen(Model):
    """Frozen towers and one head per task; nothing is shared between tasks, so nothing can be forgotten or transferred."""
