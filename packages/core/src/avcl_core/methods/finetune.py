"""Sequential fine-tuning: learn each experience in turn with the task's loss alone; the lower reference."""

from avcl_core.methods.base import Method


class Finetune(Method):
    """Sequential fine-tuning without any measure against forgetting."""
