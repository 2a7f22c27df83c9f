"""Eval mode that gradients can flow through: Fisher information and distillation compare functions without dropout or noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from avcl_core.ownership import evaluation_mode


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode, but for recurrent layers: these stay in train mode with a dropout of zero.

    Both modes then compute the same, and cuDNN, which refuses a backward pass through a recurrent layer in eval mode, allows it.
    Modes and dropout rates are restored afterwards.
    """
    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    rates = [module.dropout for module in recurrent]
    with evaluation_mode(model):
        try:
            for module in recurrent:
                module.training, module.dropout = True, 0.0
            yield
        finally:
            for module, rate in zip(recurrent, rates, strict=True):
                module.dropout = rate
