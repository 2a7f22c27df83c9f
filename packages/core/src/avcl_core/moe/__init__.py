"""Mixtures of audio-visual adapters: resampling, experts, router, and the adapter that joins them (AVMOE)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avcl_core.moe.arrays import mixture_from_arrays

__all__ = ["mixture_from_arrays"]


def __getattr__(name: str) -> Any:
    # The walk and the towers are imported only by whoever needs them.
    if name in __all__:
        from avcl_core.moe import arrays

        return getattr(arrays, name)
    raise AttributeError(f"module 'avcl_core.moe' has no attribute {name!r}")
